"""IISAN on cached hidden states (IISAN, the cached rows of its tables; `iisan`).

    python run_IISAN_cached.py --dataset ../../../Dataset/Scientific

The first run computes the hidden states of every item. Later runs read them and hold no backbone in memory. With
--state_dtype fp32 the results are those of run_IISAN.py. Use --item_tower text or image for one modality, under the
same objective and sequence length.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("iisan", item_tower="multimodal", objective="in_batch", max_seq_len=10, cached="yes", state_dtype="fp16")
