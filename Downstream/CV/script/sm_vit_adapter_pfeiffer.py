"""Pfeiffer adapters, one a block behind the attention sub-layer (Adapter4Rec, adapters compared; `pfeiffer_attention`).

    python sm_vit_adapter_pfeiffer.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

What the released script calls pfeiffer_ver2; `--method pfeiffer` puts them behind the feed-forward sub-layer.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("pfeiffer_attention", item_tower="image")
