"""Pfeiffer adapters, one per block, behind the feed-forward sub-layer (Adapter4Rec, adapters compared; `pfeiffer`).

    python adapter_pfeiffer.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

The adapters and the LayerNorms train. --variant published computes what the released script did: an extra LayerNorm
before each adapter.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("pfeiffer", item_tower="text")
