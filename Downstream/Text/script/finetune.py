"""Full fine-tuning on a target domain, the upper baseline of every Adapter4Rec table (`full`).

    python finetune.py --dataset ../../../Dataset/Adressa --checkpoint RUN --text_encoder FOLDER

Without --checkpoint it trains on the target alone; --random_backbone makes that training from scratch.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("full", max_seq_len=20, batch_size=32, lr=1e-4, backbone_lr=5e-5)
