"""IISAN: a side network beside frozen text and image encoders (IISAN, the uncached rows of its tables; `iisan`).

    python run_IISAN.py --dataset ../../../Dataset/Scientific

Ablations: --side_towers intra or inter, --no_side_gates, --no_keep_embedding, --text_layers and --image_layers;
--item_tower text or image for one modality.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt(
        "iisan",
        item_tower="multimodal",
        objective="in_batch",
        max_seq_len=10,
        batch_size=64,
        lr=2e-4,
        adapter_lr=1e-4,
        cached="no",
    )
