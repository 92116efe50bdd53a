"""Houlsby adapters in the image encoder and in SASRec (Adapter4Rec, adapter tuning; `houlsby`).

    python sm_vit_adapter.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

Only the adapters train. --insert places them in only one of the two encoders; --train_layernorm also trains the
LayerNorms.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("houlsby", item_tower="image")
