"""Projection and SASRec over a frozen image backbone (`frozen`).

    python sm_vit_frozen.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

The backbone keeps its pretrained weights.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("frozen", item_tower="image")
