"""Checkpoints whose weights are quantised already, as config.json says: GPTQ, AWQ, bitsandbytes.

Their libraries compute with them; transrec reads what comes out, and nothing trains in them or is inserted there.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from transrec.errors import TransrecError

# What transformers needs to run each, by the names that config.json and pip have for them.
LIBRARIES = {
    "gptq": ("gptqmodel", "optimum", "accelerate"),
    "awq": ("gptqmodel", "accelerate"),
    "bitsandbytes": ("bitsandbytes", "accelerate"),
}


def quantisation(config: Any, name: str) -> str | None:
    """How the weights of a backbone are quantised: a name of `LIBRARIES`; None where they are not.

    Args:
        config: of the backbone that is called `name`.

    Raises TransrecError for any other quantisation, and where its libraries are not installed.
    """
    told = getattr(config, "quantization_config", None)
    if told is None:
        return None
    is_object = isinstance(told, dict)
    # As bitsandbytes' first releases said it.
    by_bits = is_object and (told.get("load_in_4bit") or told.get("load_in_8bit"))
    kind = "bitsandbytes" if by_bits else told.get("quant_method") if is_object else None
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
    """Whether the backbone that was loaded computes with quantised weights."""
    return bool(getattr(backbone, "is_quantized", False))


def give_float32(backbone: nn.Module) -> None:
    """Have a backbone give its output in float32, whatever its libraries compute in."""

    def widen(module: nn.Module, arguments: tuple, output: Any) -> Any:
        for name, value in output.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                output[name] = value.float()
        return output

    backbone.register_forward_hook(widen)
