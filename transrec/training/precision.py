"""Mixed precision by name."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """`auto` is bf16 on GPUs that have it and fp32 elsewhere; weights stay in float32 under all of them.

    On a GPU what is computed in float32 keeps all its bits from then on: convolutions, patch embeddings among them,
    would be rounded to TF32 otherwise.
    """

    def __init__(self, name: str, device: torch.device):
        if name == "auto":
            name = (
                "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
            )
        if device.type == "cuda":
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
        self.name, self.device = name, device

    def autocast(self) -> AbstractContextManager:
        """The context that forward passes run in."""
        dtype = DTYPES[self.name]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, active for fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
