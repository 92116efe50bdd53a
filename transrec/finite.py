"""Checks that tensors hold only finite numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity, in one pass; only 8-bit floats are copied."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Both are NaN if any value is NaN.
    least, greatest = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
