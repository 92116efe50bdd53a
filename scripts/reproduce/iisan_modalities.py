"""Only titles, only images, and both (IISAN, its table of modalities).

python scripts/reproduce/iisan_modalities.py --seeds 0 1 2 --workers 8
"""

from transrec.studies import main
from transrec.studies.grids import SIDE_NETWORK
from transrec.studies.papers import IISAN, Table

GRID = SIDE_NETWORK.with_values(
    side_towers=("intra_inter",),
    side_gates=("true",),
    keep_embedding=("true",),
    layers=("every_second",),
    method=("full", "iisan_cached"),
)

if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal", table=Table(IISAN, "modalities"))
