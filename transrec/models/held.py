"""Weights of a frozen backbone held in fewer bytes than it computes in, as --encoder_dtype says.

What is held in bfloat16 or float16 is computed with in float32: each layer of a block widens its weights for as long as
it runs, so that the numbers are those of the same weights held in float32, and memory holds one copy of them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.finite import first_not_finite
from transrec.models.backbone import beyond_fp16, blocks_of, find_backbone
from transrec.models.quantised import is_quantised
from transrec.untrusted import safetensors_header

EncoderDtype = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NARROW = (torch.bfloat16, torch.float16)
# As safetensors calls them; there are others, of quantised weights and of float64.
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(name: str | Path) -> torch.dtype:
    """What the weights in a folder can be held in without loss: bfloat16 or float16 where all of them are stored so.

    float32 of any others, of other files than safetensors, and of hub names.
    """
    found = set()
    for path in Path(find_backbone(name)).glob("*.safetensors"):
        try:
            header, _ = safetensors_header(path)
            found |= {tensor["dtype"] for key, tensor in header.items() if key != "__metadata__"}
        # What is wrong with the file is told by what loads it.
        except (OSError, TransrecError, ValueError, TypeError, KeyError):
            return torch.float32
    dtypes = {STORED.get(dtype, torch.float32) for dtype in found - {"I64", "BOOL"}}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """The same values in float32, of bfloat16 and float16; any other tensor as it is."""
    return tensor.float() if tensor.dtype in NARROW else tensor


def hold(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Round all weights to `dtype`, and hold in it the matrices of blocks and embeddings; the few others in float32.

    Raises TransrecError for weights beyond what float16 holds.
    """
    if dtype not in NARROW or is_quantised(backbone):
        return
    matrices = {id(p) for module in _holders(backbone) for p in module.parameters(recurse=False) if p.ndim > 1}
    for parameter in backbone.parameters():
        if parameter.is_floating_point():
            rounded = parameter.data.to(dtype)
            parameter.data = rounded if id(parameter) in matrices else widened(rounded)
    there = {name: parameter for name, parameter in backbone.named_parameters() if not parameter.is_meta}
    if dtype == torch.float16 and (bad := first_not_finite(there)):
        raise beyond_fp16(bad)
    widen_as_it_runs(backbone)


def _holders(backbone: nn.Module) -> Iterator[nn.Module]:
    # Elsewhere a model may read a layer's weights, or their dtype, without running the layer (ViT its patch embedding).
    for block in blocks_of(backbone):
        yield from block.modules()
    for module in backbone.modules():
        if type(module) is nn.Embedding:
            yield module


def widen_as_it_runs(backbone: nn.Module) -> None:
    """Have every layer that holds bfloat16 or float16 compute in float32; once more after layers were replaced."""
    if is_quantised(backbone):
        return
    for module in backbone.modules():
        # accelerate fetches a layer's weights, then calls what it has kept of the layer under this name.
        name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        wrapped = getattr(vars(module).get(name), "func", None) is _widening
        if not wrapped and any(parameter.dtype in NARROW for parameter in module.parameters(recurse=False)):
            setattr(module, name, partial(_widening, getattr(module, name), module))


def _widening(forward: Callable[..., Any], module: nn.Module, *arguments: Any, **options: Any) -> Any:
    if type(module) is nn.Embedding:
        return widened(forward(*arguments, **options))
    held = {name: p for name, p in module._parameters.items() if p is not None and p.dtype in NARROW}
    if isinstance(module, nn.Linear) and all(_is_cast_to(parameter) for parameter in held.values()):
        return forward(*arguments, **options)
    # For as long as it runs they are plain tensors.
    parameters: dict[str, Any] = module._parameters
    parameters.update({name: widened(parameter) for name, parameter in held.items()})
    try:
        return forward(*arguments, **options)
    finally:
        parameters.update(held)


def _is_cast_to(parameter: Tensor) -> bool:
    """Whether autocast would round the widened weights of a linear layer to what they are held in."""
    kind = parameter.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == parameter.dtype


def check_what_trains(backbone: nn.Module, modality: str) -> None:
    """Raise TransrecError where weights train that are not held in float32."""
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and parameter.dtype in NARROW:
            chosen = next(name for name, dtype in DTYPES.items() if dtype == parameter.dtype)
            raise TransrecError(
                f"--encoder_dtype {chosen}: {name} of the {modality} encoder trains, and what trains is held in fp32; "
                f"give --encoder_dtype fp32, and --precision {chosen} to compute in {chosen}"
            )
