"""Only LayerNorms train (`layernorm`).

    python layernorm.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

--insert item leaves the user encoder as it was, --insert user the text encoder.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("layernorm", item_tower="text")
