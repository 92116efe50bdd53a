"""Adapters in the item encoder, the user encoder, or both (Adapter4Rec, its study of where adapters are inserted).

python scripts/reproduce/adapter4rec_place.py --seeds 0 1 2 --workers 8
"""

from transrec.studies import main
from transrec.studies.grids import INSERTION
from transrec.studies.papers import ADAPTER4REC, Table

GRID = INSERTION.with_values(method=("houlsby",), bottleneck=("64/16",), train_layernorm=("false",))

if __name__ == "__main__":
    main(__doc__, GRID, table=Table(ADAPTER4REC, "place"))
