"""Compute the hidden states for cached IISAN before the first training run.

    python scripts/cache_features.py --dataset Dataset/Scientific --text_encoder bert-base-uncased --nproc 8

The flags that determine the hidden states are those of run_IISAN_cached.py; give the same values to both. If the script
is stopped, the same command continues it.
"""

from transrec.runner import cache

if __name__ == "__main__":
    cache(item_tower="multimodal", max_seq_len=10)
