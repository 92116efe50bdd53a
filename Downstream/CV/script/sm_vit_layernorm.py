"""Only LayerNorms train (`layernorm`).

    python sm_vit_layernorm.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

--insert item leaves the user encoder unchanged; --insert user leaves the image encoder unchanged.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("layernorm", item_tower="image")
