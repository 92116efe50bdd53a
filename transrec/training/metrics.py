"""HR@k, NDCG@k and MRR from the rank of each user's one relevant item (docs/protocol.md)."""

import numpy as np


def summarise(ranks: np.ndarray, cutoffs: list[int]) -> dict[str, float]:
    """Means over users.

    Args:
        ranks: float64 [U], 1 is best; infinity where the target cannot be ranked, which counts as a miss.
        cutoffs: the k of HR@k and NDCG@k.

    Returns:
        {"HR@k": ..., "NDCG@k": ..., "MRR": ...}; a single relevant item gains 1 / log2(rank + 1) inside the cut-off.
    """
    gains = 1 / np.log2(ranks + 1)
    metrics = {}
    for k in cutoffs:
        inside = ranks <= k
        metrics[f"HR@{k}"] = float(inside.mean())
        metrics[f"NDCG@{k}"] = float((gains * inside).mean())
    metrics["MRR"] = float((1 / ranks).mean())
    return metrics
