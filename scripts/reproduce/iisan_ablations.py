"""Towers, gates, the embedding layer and LayerDrop (IISAN, its table of ablations).

    python scripts/reproduce/iisan_ablations.py --seeds 0 1 2 --workers 8

Each axis is varied while the others have their first values.
"""

from transrec.studies import main
from transrec.studies.grids import SIDE_NETWORK
from transrec.studies.papers import IISAN, Table

GRID = SIDE_NETWORK.with_values(item_tower=("multimodal",))

if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal", table=Table(IISAN, "ablations"))
