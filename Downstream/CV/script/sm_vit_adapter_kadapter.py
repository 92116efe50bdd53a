"""K-Adapter: side adapters on the first and last layer (Adapter4Rec, adapters compared; `kadapter`).

    python sm_vit_adapter_kadapter.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

The adapters train, and so does the layer that fuses them with the encoder's output. --variant published computes what
the released script did: its adapters see padding and future items.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("kadapter", item_tower="image")
