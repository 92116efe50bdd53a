"""torch.compile for recommenders."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from transrec.errors import FileError, TransrecError, reason_of
from transrec.models.recommender import Recommender

CPU_COMPILERS = ("g++", "clang++", "c++")


def check_compiler(device: torch.device) -> None:
    """Raise TransrecError if a tool that torch.compile needs for `device` is missing."""
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
    """Have the item and user encoders compiled when they first run; batches may hold any number of items.

    Random numbers are the same as in the uncompiled model. Only the rounding of float sums differs.
    """
    from torch._inductor import config

    config.fallback_random = True
    for encoder in (recommender.item_encoder, recommender.user_encoder):
        encoder.compile(dynamic=True)


@contextmanager
def about_compiler() -> Iterator[None]:
    """Context in which a failing compilation is reported in one line, with the remedy.

    Compilation happens when a compiled module first runs. Raises FileError if torch cannot read its cache of earlier
    compilations, and TransrecError otherwise.
    """
    try:
        yield
    except (RuntimeError, ImportError) as error:
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cause = getattr(error, "inner_exception", error)
        message = f"--compile: failed ({reason_of(cause)})"
        if cache_dir() in str(cause):
            # torch writes compiled files in place, so a killed process may leave an incomplete file.
            raise FileError(
                f"{message}; remove the folder {cache_dir()}, in which a killed run left it damaged"
            ) from error
        if not isinstance(error, TorchDynamoException):
            raise
        raise TransrecError(f"{message}; leave --compile out") from error
