"""One adapter per block, behind the attention sub-layer (Adapter4Rec, adapters compared; `pfeiffer_attention`).

    python adapter_pfeiffer_attention.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

The released scripts call this method pfeiffer_ver2. --train_layernorm also trains the LayerNorms.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("pfeiffer_attention", item_tower="text")
