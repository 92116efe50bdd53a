"""Pretrain SASRec over a ViT item encoder on a source domain (Adapter4Rec, the image source models).

    python sm_vit_sasrec.py --dataset ../../../Dataset/HM --image_encoder google/vit-base-patch16-224

Images are read from the dataset's store (Dataset/build_lmdb.py). The scripts of Downstream/ take the run's folder as
--checkpoint.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="image", objective="bce")
