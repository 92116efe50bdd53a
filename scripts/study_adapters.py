"""Every method on a target domain, for each objective and backbone (Adapter4Rec, the table of adapter methods).

    python scripts/study_adapters.py --source Dataset/MIND --target Dataset/Adressa --seeds 0 1 2 --workers 8

One source run for each objective and backbone, and from it one target run for each method and seed.
"""

from transrec import methods
from transrec.reports.study import Axis, Grid, main

GRID = Grid(
    (
        Axis("encoder", (), flags=("MODALITY_encoder",)),
        Axis("objective", ("sasrec", "cpc")),
        Axis("method", tuple(methods.names())),
    )
)

if __name__ == "__main__":
    main(__doc__, GRID)
