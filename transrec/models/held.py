"""Weights of a frozen backbone held in a narrower dtype than they are computed in (--encoder_dtype).

Weights held in bfloat16 or float16 are computed with in float32: each layer of a block widens its weights while it
runs. The results are those of the same weights held in float32, and memory holds only one copy of the weights.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.finite import first_not_finite
from transrec.models.backbone import blocks_of, find_backbone, fp16_overflow_error
from transrec.models.quantised import is_quantised
from transrec.untrusted import safetensors_header

EncoderDtype = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NARROW = (torch.bfloat16, torch.float16)
# Names of dtypes in safetensors files. Others exist, for quantised weights and for float64.
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_dtype(name: str | Path) -> torch.dtype:
    """Return the dtype that holds a folder's weights without loss: bfloat16 or float16 if all are stored in it.

    Return float32 for all other weights, for files other than safetensors, and for hub names.
    """
    stored = set()
    for path in Path(find_backbone(name)).glob("*.safetensors"):
        try:
            header, _ = safetensors_header(path)
            stored |= {tensor["dtype"] for key, tensor in header.items() if key != "__metadata__"}
        # The code that loads the file reports what is wrong with it.
        except (OSError, TransrecError, ValueError, TypeError, KeyError):
            return torch.float32
    dtypes = {STORED.get(dtype, torch.float32) for dtype in stored - {"I64", "BOOL"}}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """Return a bfloat16 or float16 tensor in float32, and any other tensor as it is."""
    return tensor.float() if tensor.dtype in NARROW else tensor


def store_in_dtype(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Round all weights to `dtype`; hold the matrices of blocks and words in it, and the few others in float32.

    Raises TransrecError for weights beyond the range of float16.
    """
    if dtype not in NARROW or is_quantised(backbone):
        return
    matrices = {
        id(p) for module in _modules_to_narrow(backbone) for p in module.parameters(recurse=False) if p.ndim > 1
    }
    for parameter in backbone.parameters():
        if parameter.is_floating_point():
            rounded = parameter.data.to(dtype)
            parameter.data = rounded if id(parameter) in matrices else widened(rounded)
    there = {name: parameter for name, parameter in backbone.named_parameters() if not parameter.is_meta}
    if dtype == torch.float16 and (bad := first_not_finite(there)):
        raise fp16_overflow_error(bad)
    compute_in_float32(backbone)


def _modules_to_narrow(backbone: nn.Module) -> Iterator[nn.Module]:
    # Elsewhere a model may read a layer's weights or dtype without running the layer, as with ViT's patch embedding and
    # DeBERTa's embeddings of relative positions.
    for block in blocks_of(backbone):
        yield from block.modules()
    for module in backbone.modules():
        if type(module) is nn.Embedding and module.num_embeddings == getattr(backbone.config, "vocab_size", None):
            yield module


def compute_in_float32(backbone: nn.Module) -> None:
    """Make every layer with bfloat16 or float16 weights compute in float32. Call again after replacing layers."""
    if is_quantised(backbone):
        return
    for module in backbone.modules():
        # accelerate fetches a layer's weights, then calls the layer's forward that it has stored under this name.
        name = "_old_forward" if hasattr(module, "_old_forward") else "forward"
        wrapped = getattr(vars(module).get(name), "func", None) is _forward_in_float32
        if not wrapped and any(parameter.dtype in NARROW for parameter in module.parameters(recurse=False)):
            setattr(module, name, partial(_forward_in_float32, getattr(module, name), module))


def _forward_in_float32(forward: Callable[..., Any], module: nn.Module, *arguments: Any, **options: Any) -> Any:
    if type(module) is nn.Embedding:
        return widened(forward(*arguments, **options))
    held = {name: p for name, p in module._parameters.items() if p is not None and p.dtype in NARROW}
    if isinstance(module, nn.Linear) and all(_is_cast_to(parameter) for parameter in held.values()):
        return forward(*arguments, **options)
    # While the layer runs, its parameters are plain tensors.
    parameters: dict[str, Any] = module._parameters
    parameters.update({name: widened(parameter) for name, parameter in held.items()})
    try:
        return forward(*arguments, **options)
    finally:
        parameters.update(held)


def _is_cast_to(parameter: Tensor) -> bool:
    """Return whether autocast would round a linear layer's widened weights to the dtype that they are held in."""
    kind = parameter.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == parameter.dtype


def check_trainable_dtypes(backbone: nn.Module, modality: str) -> None:
    """Raise TransrecError if any weights that train are not held in float32."""
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and parameter.dtype in NARROW:
            chosen = next(name for name, dtype in DTYPES.items() if dtype == parameter.dtype)
            raise TransrecError(
                f"--encoder_dtype {chosen}: {name} of the {modality} encoder trains, and what trains is held in fp32; "
                f"give --encoder_dtype fp32, and --precision {chosen} to compute in {chosen}"
            )
