"""Where adapters go and how (Adapter4Rec, the ablations of insertion).

    python scripts/study_insertion.py --source Dataset/MIND --target Dataset/Adressa --seeds 0 1 2 --workers 8

All combinations of: which encoder, behind (houlsby) or beside (parallel) its sub-layers, bottleneck sizes in the item
and the user encoder, and whether the LayerNorms train too.
"""

from transrec.studies import main
from transrec.studies.grids import INSERTION

if __name__ == "__main__":
    main(__doc__, INSERTION)
