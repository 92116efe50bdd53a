"""Frozen text encoder; the projection and the user encoder train (`frozen`).

    python frozen.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

The lower baseline: what the pretrained backbone gives without being adapted.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("frozen", item_tower="text")
