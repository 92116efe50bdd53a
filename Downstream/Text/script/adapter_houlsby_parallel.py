"""Parallel adapters in the item encoder and in SASRec (Adapter4Rec, serial against parallel; `parallel`).

    python adapter_houlsby_parallel.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

An adapter reads the input of its sub-layer and adds to the sub-layer's output. --variant published computes what the
released script did: it adds the input once more.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("parallel", item_tower="text")
