"""Performance and efficiency of IISAN and its baselines, with TPME (IISAN, its main table).

    python scripts/reproduce/iisan_performance.py --seeds 0 1 2

The paper's other datasets: --target Dataset/Instrument, --target Dataset/Office. Seconds and memory are those of runs
that have a GPU each to themselves: leave --workers at 1 on one GPU.
"""

from transrec.studies import main
from transrec.studies.grids import METHODS
from transrec.studies.papers import IISAN, Table

GRID = METHODS.with_values(method=("full", "houlsby", "lora:published", "bitfit", "iisan_uncached", "iisan_cached"))

if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal", table=Table(IISAN, "performance"))
