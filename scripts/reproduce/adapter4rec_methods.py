"""Adapters against each other (Adapter4Rec, its table of adapter methods).

    python scripts/reproduce/adapter4rec_methods.py --seeds 0 1 2 --workers 8

Each method as the released programs compute it, where that differs from its own paper (docs/differences.md). Over
images, with --modality image, that of pfeiffer does not fit.
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
