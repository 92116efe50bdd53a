"""IISAN: a side network next to frozen text and image encoders (IISAN, the uncached rows of its tables; `iisan`).

    python run_IISAN.py --dataset ../../../Dataset/Scientific

Ablations: --side_towers intra or inter, --no_side_gates, --no_keep_embedding, --text_layers and --image_layers. Use
--item_tower text or image for one modality, under the same objective and sequence length.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("iisan", item_tower="multimodal", objective="in_batch", max_seq_len=10, cached="no")
