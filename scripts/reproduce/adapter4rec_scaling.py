"""More source data, less target data (Adapter4Rec, its studies of data scale).

python scripts/reproduce/adapter4rec_scaling.py --seeds 0 1 2 --workers 8
"""

from transrec.studies import main
from transrec.studies.grids import SCALING
from transrec.studies.papers import ADAPTER4REC, Table

GRID = SCALING.with_values(method=("full", "houlsby"))

if __name__ == "__main__":
    main(__doc__, GRID, table=Table(ADAPTER4REC, "scaling"))
