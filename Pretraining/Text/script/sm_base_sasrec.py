"""Pretrain SASRec over a BERT item encoder on a source domain (Adapter4Rec, the source models of tables 2-5).

    python sm_base_sasrec.py --dataset ../../../Dataset/MIND --text_encoder bert-base-uncased

The run's folder is what Downstream scripts take as --checkpoint.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(objective="sasrec", max_seq_len=20, batch_size=32, lr=1e-4, backbone_lr=5e-5)
