"""SASRec over learned item vectors, the baseline without content.

    python id_baseline.py --dataset ../../../Dataset/Adressa

It trains by what makes IDs strong: softmax over the batch's items, and weights from N(0, 0.02). --protocol published is
the papers' baseline, of one negative and Xavier-normal weights, which ranks far worse.

There is no backbone and nothing to transfer: items of another dataset have other numbers.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="id")
