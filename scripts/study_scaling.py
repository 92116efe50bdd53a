"""Study how much source and target data adapters need (Adapter4Rec, the studies of data scale).

    python scripts/study_scaling.py --source Dataset/MIND --target Dataset/Adressa --seeds 0 1 2 --workers 8

The source fraction is varied with all target data, and the target fraction with all source data. A fraction refers to
the training users, and smaller fractions are subsets of larger ones (--subset_seed). All users are evaluated by full
ranking, so that rows can be compared. With a source fraction of 0, nothing is pretrained.
"""

from transrec.studies import main
from transrec.studies.grids import SCALING

if __name__ == "__main__":
    main(__doc__, SCALING)
