"""Checkpoints whose weights are already quantised, as config.json declares: GPTQ, AWQ, bitsandbytes.

The quantisation libraries do the computing. transrec only reads the outputs: nothing is trained or inserted inside.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from transrec.errors import TransrecError

# Packages that transformers needs for each quantisation. Keys are names in config.json, values names for pip.
LIBRARIES = {
    "gptq": ("gptqmodel", "optimum", "accelerate"),
    "awq": ("gptqmodel", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
}


def quantisation(config: Any, name: str) -> str | None:
    """Return how the weights of a backbone are quantised, as a key of `LIBRARIES`; None if they are not quantised.

    Args:
        config: the configuration of the backbone called `name`.

    Raises TransrecError for any other quantisation, and if the libraries for it are not installed.
    """
    declared = getattr(config, "quantization_config", None)
    if declared is None:
        return None
    is_object = isinstance(declared, dict)
    # The form that the first releases of bitsandbytes used.
    by_bits = is_object and (declared.get("load_in_4bit") or declared.get("load_in_8bit"))
    kind = "bitsandbytes" if by_bits else declared.get("quant_method") if is_object else None
    if not isinstance(kind, str) or kind not in LIBRARIES:
        raise TransrecError(
            f"{name}: config.json says that the weights are quantised by {kind!r}, and only {', '.join(LIBRARIES)} "
            f"are run; give the model without quantisation"
        )
    if missing := [library for library in LIBRARIES[kind] if find_spec(library) is None]:
        raise TransrecError(
            f"{name}: its weights are quantised ({kind}), which needs {' and '.join(missing)}; install with: "
            f"pip install {' '.join(missing)}"
        )
    return kind


def is_quantised(backbone: nn.Module) -> bool:
    """Return whether a loaded backbone computes with quantised weights."""
    return bool(getattr(backbone, "is_quantized", False))


def packed_parameters(backbone: nn.Module) -> int:
    """Return by how much the number of a quantised backbone's weights exceeds the size of its parameters.

    Layers with quantised weights pack several into one number, or hold them in buffers.
    """
    with torch.device("meta"):
        unpacked = type(backbone)(backbone.config)
    whole, held = (sum(parameter.numel() for parameter in model.parameters()) for model in (unpacked, backbone))
    return whole - held


def return_float32(backbone: nn.Module) -> None:
    """Make a backbone return its output in float32, whatever dtype its libraries compute in."""

    def widen(module: nn.Module, arguments: tuple, output: Any) -> Any:
        for name, value in output.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                output[name] = value.float()
        return output

    backbone.register_forward_hook(widen)
