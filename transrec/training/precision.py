"""Mixed precision by name."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The precision of forward passes: "fp32", "bf16", "fp16", or "auto".

    "auto" is bf16 on GPUs that support it and fp32 elsewhere. Trained weights stay in float32 at every precision. For
    a GPU the constructor turns TF32 off, to which convolutions, including patch embeddings, would otherwise be rounded.
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
        """Return the context in which forward passes run."""
        dtype = DTYPES[self.name]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler, which is active only for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")
