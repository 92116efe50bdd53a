"""Pretrain with the CPC objective over a ViT item encoder on a source domain (Adapter4Rec, the image source models).

    python sm_vit_cpc.py --dataset ../../../Dataset/HM --image_encoder google/vit-base-patch16-224

The user encoder is that of sm_vit_sasrec.py, but only the last position of a sequence predicts the next item.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(item_tower="image", objective="cpc")
