"""Parallel adapters in the image encoder and in SASRec (Adapter4Rec, serial against parallel; `parallel`).

    python sm_vit_adapter_parallel.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

An adapter reads the input of its sub-layer and adds to the sub-layer's output. --variant published computes what the
released script did: it inserts adapters only at the feed-forward sub-layers and adds the residual stream once more.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("parallel", item_tower="image")
