"""Items of about as many tokens pass a backbone together, so that hardly any of its work is on padding."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transrec.data.features import Features


def pass_tokens(width: int, device: torch.device) -> float:
    """About how many tokens cost a backbone of that width as much as one more call of it does by itself.

    On a CPU 65 at MiniLM's width, as measured. Of an accelerator an estimate: it is sooner through with tokens, but not
    with launching what reads them.
    """
    return (25_000 if device.type == "cpu" else 400_000) / width


@dataclass(frozen=True)
class Inputs:
    """An item encoder's inputs of N items.

    Attributes:
        groups: those of each group of items.
        order: int64 [N] on the inputs' device, where among the items of all groups each item stands; None where one
            group holds all, in their order.
    """

    groups: tuple[tuple[Tensor, ...], ...]
    order: Tensor | None = None

    def encoded(self, encoder: Callable[..., Tensor]) -> Tensor:
        """What the encoder, called with the inputs of N items, makes of each: [N, ...]."""
        encoded = [encoder(*inputs) for inputs in self.groups]
        return encoded[0] if self.order is None else torch.cat(encoded)[self.order]


def grouped(features: "Features", items: Tensor, read: tuple[Tensor, ...] | None = None) -> Inputs:
    """The inputs of items int64 [N] on the host, values 1..n, in groups of which each is padded to its own longest.

    One group where the items are of one length, or where more would cost more than the padding does.

    Args:
        read: what `features.read(items)` gave, where it was called before.
    """
    lengths = getattr(features, "host_lengths", None)
    if lengths is None or not len(items):
        return Inputs((features.inputs(items, read),))
    groups = by_length(lengths[items.numpy() - 1], getattr(features, "pass_tokens", inf))
    if len(groups) == 1:
        return Inputs((features.inputs(items, read),))
    inputs = tuple(features.inputs(items[torch.from_numpy(group)]) for group in groups)
    order = torch.from_numpy(np.argsort(np.concatenate(groups)))
    return Inputs(inputs, order.to(inputs[0][0].device, non_blocking=True))


def keep_together(features: "Features") -> None:
    """Have `grouped` make one group of whatever items of these from now on."""
    vars(features)["pass_tokens"] = inf


def by_length(lengths: np.ndarray, pass_tokens: float) -> list[np.ndarray]:
    """The rows of each group, int64, ascending: of all groupings the one that costs least.

    Args:
        lengths: int [N], N > 0, tokens of each item. A group costs its longest for each of its items.
        pass_tokens: what a group costs besides.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # least[j]: the least that the items of the j shortest lengths cost; the last of their groups begins at begins[j].
    least, begins = np.zeros(len(distinct) + 1), np.zeros(len(distinct) + 1, np.int64)
    for end in range(1, len(distinct) + 1):
        costs = least[:end] + (below[end] - below[:end]) * distinct[end - 1] + pass_tokens
        begins[end] = np.argmin(costs)
        least[end] = costs[begins[end]]
    groups, end = [], len(distinct)
    while end:
        within = (lengths >= distinct[begins[end]]) & (lengths <= distinct[end - 1])
        groups.append(np.flatnonzero(within))
        end = begins[end]
    return groups[::-1]
