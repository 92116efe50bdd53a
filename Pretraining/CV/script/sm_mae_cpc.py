"""Pretrain with the CPC objective over an MAE item encoder on a source domain (Adapter4Rec, the image source models).

    python sm_mae_cpc.py --dataset ../../../Dataset/HM --image_encoder facebook/vit-mae-base

The user encoder is that of sm_mae_sasrec.py, but only the last position of a sequence predicts the next item.

MAE runs without masking. --mask_ratio 0.75 masks random patches in every forward pass, as the released program did.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="image", image_encoder="facebook/vit-mae-base", objective="cpc")
