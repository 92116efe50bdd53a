"""BitFit: only biases train (`bitfit`).

    python sm_vit_bitfit.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

--insert item leaves the user encoder unchanged; --insert user leaves the image encoder unchanged.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("bitfit", item_tower="image")
