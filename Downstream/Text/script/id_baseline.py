"""SASRec over learned item vectors, the baseline without content.

    python id_baseline.py --dataset ../../../Dataset/Adressa

It uses the settings that make ID models strong: in-batch softmax, and weights from N(0, 0.02). --protocol published is
the papers' baseline, with one negative per positive and Xavier-normal weights, which ranks far worse.

There is no backbone and nothing to transfer, because item IDs differ between datasets.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="id")
