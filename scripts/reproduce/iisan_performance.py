"""Performance and efficiency of IISAN and its baselines, with TPME (IISAN, its main table).

    python scripts/reproduce/iisan_performance.py --seeds 0 1 2

For the paper's other datasets, use --target Dataset/Instrument or --target Dataset/Office. Seconds and memory are only
comparable if each run has a GPU to itself: leave --workers at 1 on one GPU.
"""

from transrec.studies import main
from transrec.studies.grids import METHODS
from transrec.studies.papers import IISAN, Table

GRID = METHODS.with_values(method=("full", "houlsby", "lora:published", "bitfit", "iisan_uncached", "iisan_cached"))

if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal", table=Table(IISAN, "performance"))
