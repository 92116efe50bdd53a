"""The k best of all items for each of many users, in memory that does not grow with the number of items."""

import torch
from torch import Tensor

# Columns whose maximum is taken first: of most groups nothing more is looked at.
GROUP = 32


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row, best first, and their columns; of equal ones the first columns.

    Args:
        scores: float [B, n], no NaN.
        k: 1..n.

    Returns:
        float [B, k] and int64 [B, k].
    """
    groups = scores.shape[1] // GROUP
    if groups <= 2 * (k + 1):
        values, columns, tied = _selected(scores, k)
    else:
        # Whatever is among the k best stands in one of the k groups of the highest maxima.
        whole = scores[:, : groups * GROUP].unflatten(1, (groups, GROUP))
        highest, chosen = whole.amax(2).topk(k + 1)
        chosen = chosen[:, :k].sort().values
        rest = torch.arange(groups * GROUP, scores.shape[1], device=scores.device)
        inside = (chosen.unsqueeze(2) * GROUP + torch.arange(GROUP, device=scores.device)).flatten(1)
        candidates = torch.cat([inside, rest.expand(len(scores), -1)], dim=1)
        values, places, tied = _selected(scores.gather(1, candidates), k)
        columns = candidates.gather(1, places)
        tied |= values[:, -1] == highest[:, k]
    # Which of equal scores topk takes is open, so where it had to choose, all are sorted.
    rows = (tied & (values[:, -1] > -torch.inf)).nonzero().squeeze(1)
    if len(rows):
        in_order, places = scores[rows].sort(dim=1, descending=True, stable=True)
        values[rows], columns[rows] = in_order[:, :k], places[:, :k]
    return values, columns


def _selected(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `best`, and bool [B]: where equal scores stand on both sides of the k-th."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]))
    tied = values[:, k - 1] == values[:, k] if values.shape[1] > k else torch.zeros_like(values[:, 0], dtype=torch.bool)
    columns, order = columns[:, :k].sort(dim=1)
    values, by_score = values[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, by_score), tied


def top_items(users: Tensor, items: Tensor, seen: tuple[Tensor, Tensor], k: int, memory: int) -> tuple[Tensor, Tensor]:
    """The k items of the highest inner product with each user, best first; of equal ones the first items.

    Args:
        users: float32 [B, d].
        items: float32 [n, d].
        seen: int64 [H] each: items from 0 that are left out, and the row of the user for whom they are.
        k: 1..n.
        memory: bytes that scores may take at a time; those of at least k items are computed at a time.

    Returns:
        float32 [B, k], minus infinity where all others are left out, and int64 [B, k], items from 0.
    """
    step = max(k, memory // (items.element_size() * max(1, len(users))))
    left_out, owner = seen
    values = users.new_empty(len(users), 0)
    found = torch.empty(len(users), 0, dtype=torch.int64, device=users.device)
    for start in range(0, len(items), step):
        chunk = items[start : start + step]
        scores = users @ chunk.T
        here = (left_out >= start) & (left_out < start + len(chunk))
        scores[owner[here], left_out[here] - start] = -torch.inf
        more, columns = best(scores, min(k, len(chunk)))
        # The items so far come first, so a stable sort keeps the order of equal scores.
        values, order = torch.cat([values, more], dim=1).sort(dim=1, descending=True, stable=True)
        values = values[:, :k]
        found = torch.cat([found, columns + start], dim=1).gather(1, order[:, :k])
    return values, found
