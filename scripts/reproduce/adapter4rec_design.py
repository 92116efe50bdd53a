"""Serial or parallel adapters, their size, and LayerNorms (Adapter4Rec, its study of how adapters are inserted).

python scripts/reproduce/adapter4rec_design.py --seeds 0 1 2 --workers 8
"""

from transrec.studies import main
from transrec.studies.grids import INSERTION
from transrec.studies.papers import ADAPTER4REC, Table

GRID = INSERTION.with_values(insert=("all",), method=("houlsby", "parallel:published"))

if __name__ == "__main__":
    main(__doc__, GRID, table=Table(ADAPTER4REC, "design"))
