"""LoRA on the query and value projections (Adapter4Rec, adapters compared; `lora`).

    python adapter_lora.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

The pretrained query and value weights stay frozen, and low-rank updates train. --variant published computes what the
released script did: it replaces the pretrained weights by new random ones.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("lora", item_tower="text")
