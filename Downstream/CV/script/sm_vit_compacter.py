"""Compacter: adapters of Kronecker products (Adapter4Rec, adapters compared; `compacter`).

    python sm_vit_compacter.py --dataset ../../../Dataset/Amazon --checkpoint RUN --image_encoder FOLDER

The adapters and the LayerNorms train. --variant published computes what the released script did, without a residual
around the adapters.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt(
        "compacter",
        item_tower="image",
        max_seq_len=20,
        batch_size=8,
        adapter_lr=4e-3,
        item_bottleneck=64,
        user_bottleneck=16,
        kronecker=4,
    )
