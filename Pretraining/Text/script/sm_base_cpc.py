"""Pretrain with the CPC objective over a BERT item encoder on a source domain (Adapter4Rec, the CPC source models).

    python sm_base_cpc.py --dataset ../../../Dataset/MIND --text_encoder bert-base-uncased

The user encoder is that of sm_base_sasrec.py, but only the last position of a sequence predicts the next item.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="text", objective="cpc")
