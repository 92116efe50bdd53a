"""Top-k items for many users, in memory that does not grow with the number of items."""

import torch
from torch import Tensor

# Number of columns in a group. Only the maximum of each group is computed at first; most groups are not read again.
GROUP = 32


def top_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row, best first, and their columns; ties go to the first columns.

    Args:
        scores: float [B, n], no NaN.
        k: 1..n.

    Returns:
        float [B, k] and int64 [B, k].
    """
    groups = scores.shape[1] // GROUP
    if groups <= 2 * (k + 1):
        values, columns, tied = _top_scores_with_ties(scores, k)
    else:
        # The k best scores are all in the k groups with the highest maxima, or in the rest.
        grouped = scores[:, : groups * GROUP].unflatten(1, (groups, GROUP))
        highest, chosen = grouped.amax(2).topk(k + 1)
        chosen = chosen[:, :k].sort().values
        rest = torch.arange(groups * GROUP, scores.shape[1], device=scores.device)
        inside = (chosen.unsqueeze(2) * GROUP + torch.arange(GROUP, device=scores.device)).flatten(1)
        candidates = torch.cat([inside, rest.expand(len(scores), -1)], dim=1)
        values, places, tied = _top_scores_with_ties(scores.gather(1, candidates), k)
        columns = candidates.gather(1, places)
        tied |= values[:, -1] == highest[:, k]
    # topk may return any of several equal scores, so rows in which it had to choose between them are sorted.
    rows = (tied & (values[:, -1] > -torch.inf)).nonzero().squeeze(1)
    if len(rows):
        in_order, places = scores[rows].sort(dim=1, descending=True, stable=True)
        values[rows], columns[rows] = in_order[:, :k], places[:, :k]
    return values, columns


def _top_scores_with_ties(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `top_scores`, and bool [B]: whether the k-th score of a row equals the next one."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]))
    tied = values[:, k - 1] == values[:, k] if values.shape[1] > k else torch.zeros_like(values[:, 0], dtype=torch.bool)
    columns, order = columns[:, :k].sort(dim=1)
    values, by_score = values[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, by_score), tied


def top_items(users: Tensor, items: Tensor, seen: tuple[Tensor, Tensor], k: int, memory: int) -> tuple[Tensor, Tensor]:
    """Return the k items with the highest inner product with each user, best first; ties go to the first items.

    Args:
        users: float32 [B, d].
        items: float32 [n, d].
        seen: int64 [H] each: items (from 0) to leave out, and for each of them the row of the user concerned.
        k: 1..n.
        memory: bytes for the scores that are computed at once; these are always scores of at least k items.

    Returns:
        float32 [B, k], minus infinity if fewer than k items remain, and int64 [B, k], items from 0.
    """
    step = max(k, memory // (items.element_size() * max(1, len(users))))
    left_out, owner = seen
    values = users.new_empty(len(users), 0)
    indices = torch.empty(len(users), 0, dtype=torch.int64, device=users.device)
    for start in range(0, len(items), step):
        chunk = items[start : start + step]
        scores = users @ chunk.T
        in_chunk = (left_out >= start) & (left_out < start + len(chunk))
        scores[owner[in_chunk], left_out[in_chunk] - start] = -torch.inf
        more, columns = top_scores(scores, min(k, len(chunk)))
        # Items of earlier chunks come first, so a stable sort keeps equal scores in the order of items.
        values, order = torch.cat([values, more], dim=1).sort(dim=1, descending=True, stable=True)
        values = values[:, :k]
        indices = torch.cat([indices, columns + start], dim=1).gather(1, order[:, :k])
    return values, indices
