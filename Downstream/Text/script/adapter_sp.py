"""Soft prompts in front of every title (Adapter4Rec, adapters compared; `prompt`).

    python adapter_sp.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

Only the prompt trains. --variant published computes what the released script did: it overwrites the title's first
tokens.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("prompt", item_tower="text")
