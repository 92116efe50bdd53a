"""IISAN and full fine-tuning over BERT or DeBERTa and ViT or CLIP (IISAN, its table of backbones).

    python scripts/reproduce/iisan_backbones.py --seeds 0 1 2 --workers 8

It is not known which DeBERTa and CLIP models the paper used; choose others with --encoder TEXT,IMAGE.
"""

from transrec.studies import main
from transrec.studies.grids import METHODS
from transrec.studies.papers import IISAN, Table

TEXTS, IMAGES = (
    ("bert-base-uncased", "microsoft/deberta-v3-base"),
    ("google/vit-base-patch16-224", "openai/clip-vit-base-patch16"),
)
GRID = METHODS.with_values(
    encoder=tuple(f"{text},{image}" for text in TEXTS for image in IMAGES), method=("full", "iisan_cached")
)

if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal", table=Table(IISAN, "backbones"))
