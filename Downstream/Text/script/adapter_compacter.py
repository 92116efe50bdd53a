"""Compacter: adapters with weights that are sums of Kronecker products (Adapter4Rec, adapters compared; `compacter`).

    python adapter_compacter.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

The adapters and the LayerNorms train. --variant published computes what the released script did: no residual
connection around the adapters.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("compacter", item_tower="text")
