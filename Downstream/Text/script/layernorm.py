"""Only LayerNorms train (`layernorm`).

    python layernorm.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

--insert item leaves the user encoder unchanged; --insert user leaves the text encoder unchanged.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("layernorm", item_tower="text")
