"""SASRec over learned item vectors, the baseline without content.

    python id_baseline.py --dataset ../../../Dataset/Adressa

There is no backbone and nothing to transfer: items of another dataset have other numbers.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="id")
