"""Gathers rows of a tensor from all ranks, with gradients back to the rank that each row came from."""

import torch
from torch import Tensor, distributed


class _AllGather(torch.autograd.Function):
    """Stacks tensors of equal shape from all ranks; the gradient of a slice is the sum over the ranks that used it."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate `rows` [N_rank, ...] of all ranks along the first axis, in rank order; with one rank, return `rows`.

    Ranks may hold different numbers of rows. All ranks must make the same calls in the same order.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, count)
    sizes = [int(c) for c in counts]
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    gathered = _AllGather.apply(torch.cat([rows, padding]))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])
