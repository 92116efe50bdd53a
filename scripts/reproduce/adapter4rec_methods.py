"""Adapter methods compared with each other (Adapter4Rec, its table of adapter methods).

    python scripts/reproduce/adapter4rec_methods.py --seeds 0 1 2 --workers 8

Each method is computed as in the released programs where they differ from the method's own paper (docs/differences.md).
The exception is pfeiffer over images (--modality image): its published variant needs a LayerNorm behind each block.
"""

from transrec.studies import main
from transrec.studies.grids import METHODS
from transrec.studies.papers import ADAPTER4REC, Table

ADAPTERS = ("lora:published", "compacter:published", "kadapter:published", "prompt:published")
GRID = METHODS.with_values(
    method={
        "text": ("houlsby", "pfeiffer:published", *ADAPTERS),
        "image": ("houlsby", "pfeiffer", *ADAPTERS),
    }
)

if __name__ == "__main__":
    main(__doc__, GRID, table=Table(ADAPTER4REC, "methods"))
