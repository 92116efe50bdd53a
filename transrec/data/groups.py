"""Groups items of similar token count for the backbone, so that little of its work is spent on padding."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transrec.data.features import Features


def call_overhead_tokens(width: int, device: torch.device) -> float:
    """Return about how many tokens cost a backbone of that width as much as the overhead of one more call.

    On a CPU this is 65 at MiniLM's width, as measured. The figure for accelerators is an estimate: they process tokens
    faster, but launching a kernel costs about as much.
    """
    return (25_000 if device.type == "cpu" else 400_000) / width


@dataclass(frozen=True)
class Inputs:
    """An item encoder's inputs for N items.

    Attributes:
        groups: the encoder's inputs, one tuple per group of items.
        order: int64 [N] on the inputs' device, the position of each item in the concatenated groups; None if a single
            group holds all items in their original order.
    """

    groups: tuple[tuple[Tensor, ...], ...]
    order: Tensor | None = None

    def encoded(self, encoder: Callable[..., Tensor]) -> Tensor:
        """Return the encoder's output for the N items, in their original order: [N, ...]."""
        encoded = [encoder(*inputs) for inputs in self.groups]
        return encoded[0] if self.order is None else torch.cat(encoded)[self.order]


def group_inputs(features: "Features", items: Tensor, read: tuple[Tensor, ...] | None = None) -> Inputs:
    """Return the inputs of items int64 [N] on the host, values 1..n, in groups padded to their own longest item.

    There is one group if all items have the same length, or if further groups would cost more than the padding does.

    Args:
        read: the result of `features.read(items)`, if that was called before.
    """
    lengths = getattr(features, "host_lengths", None)
    if lengths is None or not len(items):
        return Inputs((features.inputs(items, read),))
    groups = by_length(lengths[items.numpy() - 1], getattr(features, "call_overhead_tokens", inf))
    if len(groups) == 1:
        return Inputs((features.inputs(items, read),))
    inputs = tuple(features.inputs(items[torch.from_numpy(group)]) for group in groups)
    order = torch.from_numpy(np.argsort(np.concatenate(groups)))
    return Inputs(inputs, order.to(inputs[0][0].device, non_blocking=True))


def use_one_group(features: "Features") -> None:
    """Make `group_inputs` put all items of these features into one group from now on."""
    vars(features)["call_overhead_tokens"] = inf


def by_length(lengths: np.ndarray, call_overhead_tokens: float) -> list[np.ndarray]:
    """Return the rows of each group, int64, ascending, for the grouping with the lowest cost.

    Args:
        lengths: int [N], N > 0, tokens of each item. Every item costs as many tokens as the longest of its group.
        call_overhead_tokens: the overhead of each group, in tokens.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # least[j]: the lowest cost of the items of the j shortest lengths; the last of their groups begins at begins[j].
    least, begins = np.zeros(len(distinct) + 1), np.zeros(len(distinct) + 1, np.int64)
    for end in range(1, len(distinct) + 1):
        costs = least[:end] + (below[end] - below[:end]) * distinct[end - 1] + call_overhead_tokens
        begins[end] = np.argmin(costs)
        least[end] = costs[begins[end]]
    groups, end = [], len(distinct)
    while end:
        within = (lengths >= distinct[begins[end]]) & (lengths <= distinct[end - 1])
        groups.append(np.flatnonzero(within))
        end = begins[end]
    return groups[::-1]
