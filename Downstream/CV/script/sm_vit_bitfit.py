"""BitFit: only biases train (`bitfit`).

    python sm_vit_bitfit.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

--insert item leaves the user encoder as it was, --insert user the image encoder.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("bitfit", item_tower="image")
