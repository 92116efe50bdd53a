"""Compute the hidden states that cached IISAN trains on, ahead of the first run.

    python scripts/cache_features.py --dataset Dataset/Scientific --text_encoder bert-base-uncased --nproc 8

Every flag that decides them is one of run_IISAN_cached.py; give the same. Stopped, the same command continues.
"""

from transrec.runner import cache

if __name__ == "__main__":
    cache(item_tower="multimodal", max_seq_len=10)
