"""Pretrain SASRec over a ViT item encoder on a source domain (Adapter4Rec, the image source models).

    python sm_vit_sasrec.py --dataset ../../../Dataset/HM --image_encoder google/vit-base-patch16-224

Images come from the dataset's store (Dataset/build_lmdb.py). The run's folder is what Downstream scripts take as
--checkpoint.
"""

from transrec.runner import pretrain

if __name__ == "__main__":
    pretrain(
        item_tower="image",
        image_encoder="google/vit-base-patch16-224",
        objective="sasrec",
        max_seq_len=20,
        batch_size=8,
        lr=1e-4,
        backbone_lr=1e-4,
    )
