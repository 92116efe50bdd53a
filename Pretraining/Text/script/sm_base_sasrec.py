"""Pretrain SASRec over a BERT item encoder on a source domain (Adapter4Rec, the source models of tables 2-5).

    python sm_base_sasrec.py --dataset ../../../Dataset/MIND --text_encoder bert-base-uncased

The scripts of Downstream/ take the run's folder as --checkpoint.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="text", objective="bce")
