"""torch.compile for recommenders."""

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from transrec.errors import TransrecError
from transrec.models.recommender import Recommender

CPU_COMPILERS = ("g++", "clang++", "c++")


def check_compiler(device: torch.device) -> None:
    """Raise TransrecError when what torch.compile needs for `device` is missing."""
    if device.type == "cpu":
        wanted = [os.environ["CXX"]] if "CXX" in os.environ else CPU_COMPILERS
        if not any(map(shutil.which, wanted)):
            raise TransrecError(f"--compile: needs a C++ compiler ({', '.join(wanted)}); install one, or leave it out")
        headers = Path(sysconfig.get_paths()["include"])
        if not (headers / "Python.h").exists():
            raise TransrecError(f"--compile: needs Python's headers in {headers}; install them, or leave it out")
    elif device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise TransrecError("--compile: needs triton on a GPU; pip install triton, or leave it out")


def compile_encoders(recommender: Recommender) -> None:
    """Have item and user encoder compiled when they first run; batches may hold any number of items.

    Random numbers stay those of the uncompiled model: what differs is the rounding of float sums.
    """
    from torch._inductor import config

    config.fallback_random = True
    for encoder in (recommender.item_encoder, recommender.user_encoder):
        encoder.compile(dynamic=True)
