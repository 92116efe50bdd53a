"""K-Adapter: side adapters on the first and last layer (Adapter4Rec, adapters compared; `kadapter`).

    python adapter_kadapter.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

The adapters and the layer that fuses them with the encoder's output train. --variant published computes what the
released script did, whose adapters see padding and future items.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("kadapter", item_tower="text")
