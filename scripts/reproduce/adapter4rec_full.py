"""Full fine-tuning compared with adapters, by objective and backbone (Adapter4Rec, its main table).

    python scripts/reproduce/adapter4rec_full.py --seeds 0 1 2 --workers 8

Runs SASRec (bce) and CPC over BERT and RoBERTa or, with --modality image, over ViT and MAE. The released program masks
75 % of MAE's patches in every forward pass; for the same, add --mask_ratio 0.75.
"""

from transrec.studies import main
from transrec.studies.grids import METHODS
from transrec.studies.papers import ADAPTER4REC, Table

GRID = METHODS.with_values(
    encoder={
        "text": ("bert-base-uncased", "roberta-base"),
        "image": ("google/vit-base-patch16-224", "facebook/vit-mae-base"),
    },
    method=("full", "houlsby"),
)

if __name__ == "__main__":
    main(__doc__, GRID, table=Table(ADAPTER4REC, "full"))
