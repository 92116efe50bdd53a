"""How much source and how much target data adapters need (Adapter4Rec, the studies of data scale).

    python scripts/study_scaling.py --source Dataset/MIND --target Dataset/Adressa --seeds 0 1 2 --workers 8

The source fraction is varied at the whole target, the target fraction at the whole source. A fraction is of the users
who are trained on, a smaller one within a larger one (--subset_seed); all users are ranked, among all items, so that
rows can be compared. A source fraction of 0 pretrains nothing.
"""

from transrec.studies import main
from transrec.studies.grids import SCALING

if __name__ == "__main__":
    main(__doc__, SCALING)
