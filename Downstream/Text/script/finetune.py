"""Full fine-tuning on a target domain, the upper baseline of every Adapter4Rec table (`full`).

    python finetune.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

Without --checkpoint, it trains on the target only; with --random_backbone as well, it trains from scratch.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("full", item_tower="text")
