"""Study ablations of IISAN: towers, gates, layers, modalities (IISAN, its tables of ablations).

    python scripts/study_iisan.py --target Dataset/Scientific --seeds 0 1 2 --workers 8

Each axis is varied while the others have their first values. --layers takes the layers of the text and of the image
encoder, like 1,3,5,7,9,11/1,3,5,7,9,11, or the name of a choice that works for any number of layers.
"""

from transrec.studies import main
from transrec.studies.grids import SIDE_NETWORK

if __name__ == "__main__":
    main(__doc__, SIDE_NETWORK, modality="multimodal")
