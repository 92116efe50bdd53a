"""Frozen text encoder; the projection and the user encoder train (`frozen`).

    python frozen.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

This is the lower baseline: the pretrained backbone without adaptation.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("frozen", item_tower="text")
