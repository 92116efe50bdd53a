"""Soft prompts among the patches of every image (Adapter4Rec, adapters compared; `prompt`).

    python sm_vit_sp.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

Only the prompt trains. --variant published computes what the released script did: it places the prompts behind the last
patch, and the projection trains, too.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("prompt", item_tower="image")
