"""Pretrain SASRec over an MAE item encoder on a source domain (Adapter4Rec, the image source models).

    python sm_mae_sasrec.py --dataset ../../../Dataset/HM --image_encoder facebook/vit-mae-base

Images are read from the dataset's store (Dataset/build_lmdb.py). The scripts of Downstream/ take the run's folder as
--checkpoint.

MAE runs without masking. --mask_ratio 0.75 masks random patches in every forward pass, as the released program did.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="image", image_encoder="facebook/vit-mae-base", objective="bce")
