"""Pfeiffer adapters, one per block, behind the attention sub-layer (Adapter4Rec, adapters compared).

    python sm_vit_adapter_pfeiffer.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

The method is `pfeiffer_attention`, called pfeiffer_ver2 in the released script. `--method pfeiffer` places the adapters
behind the feed-forward sub-layer instead.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("pfeiffer_attention", item_tower="image")
