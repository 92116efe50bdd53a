"""Whether tensors hold nothing but finite numbers."""

from collections.abc import Mapping

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity; one pass, and no memory of its size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Least and greatest are NaN where any value is.
    least, greatest = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return bool(torch.isfinite(least) & torch.isfinite(greatest))


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)
