"""Study every method on a target domain, for each objective and backbone (Adapter4Rec, the table of adapter methods).

    python scripts/study_adapters.py --source Dataset/MIND --target Dataset/Adressa --seeds 0 1 2 --workers 8

There is one source run for each objective and backbone; one target run for each method and seed starts from it. With
--modality multimodal, a value of --encoder names both backbones, like bert-base-uncased,google/vit-base-patch16-224,
and the objective is IISAN's by default. Without --source, as in IISAN's tables, nothing is pretrained.
"""

from transrec.studies import main
from transrec.studies.grids import METHODS

if __name__ == "__main__":
    main(__doc__, METHODS)
