"""Study where and how adapters are inserted (Adapter4Rec, the ablations of insertion).

    python scripts/study_insertion.py --source Dataset/MIND --target Dataset/Adressa --seeds 0 1 2 --workers 8

Runs all combinations of these axes: the encoder with adapters, adapters behind its sub-layers (houlsby) or parallel to
them (parallel), bottleneck sizes in the item and the user encoder, and whether the LayerNorms also train.
"""

from transrec.studies import main
from transrec.studies.grids import INSERTION

if __name__ == "__main__":
    main(__doc__, INSERTION)
