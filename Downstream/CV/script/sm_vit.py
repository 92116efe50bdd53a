"""Full fine-tuning on a target domain, the upper baseline of every image table of Adapter4Rec (`full`).

    python sm_vit.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

Without --checkpoint, it trains on the target only; with --random_backbone as well, it trains from scratch.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("full", item_tower="image")
