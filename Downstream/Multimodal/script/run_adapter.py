"""Houlsby adapters in a text and an image encoder, fused (IISAN, the Adapter rows of its tables; `houlsby`).

    python run_adapter.py --dataset ../../../Dataset/Scientific

The user encoder, the projections and the fusion train too: there is no source domain.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt(
        "houlsby",
        item_tower="multimodal",
        objective="in_batch",
        max_seq_len=10,
        batch_size=32,
        insert="item",
        adapter_lr=1e-4,
        lr=1e-4,
        item_bottleneck=64,
    )
