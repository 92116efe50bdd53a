"""Checkpoints: one safetensors file each, whose header holds a JSON description. Nothing is pickled.

A checkpoint holds only what its run trained, buffers that the method brought along included, and describes the base it
needs: the method, the sizes, and a hash of the weights that stayed frozen.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from transrec.errors import TransrecError, about_file
from transrec.finite import first_not_finite
from transrec.paths import atomic_write
from transrec.untrusted import parse_json, safetensors_header

FORMAT = 1
HEADER = "transrec"
DESCRIBED = {"method": str, "method_options": dict, "sizes": dict, "item_count": int, "base": dict}


def save(path: Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and description under a temporary name, then rename.

    Raises FileError when it cannot be written; what stood under the name before stays.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps({"format": FORMAT, **description})})


def read(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU), those whose names start with `prefix`, and description of a checkpoint.

    Raises TransrecError when the file is missing, damaged, not one of ours, or holds numbers that are not finite.
    """
    with _opened(path) as file:
        description = _description(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    check_finite(path, tensors)
    return tensors, description


def describe(path: Path) -> dict[str, Any]:
    """The description of a checkpoint alone. Raises TransrecError as `read`."""
    with _opened(path) as file:
        return _description(path, file.metadata())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with about_file(path, what="cannot read the checkpoint"):
            safetensors_header(path)
            with safe_open(path, framework="pt") as file:
                yield file
    except (SafetensorError, ValueError) as error:
        raise TransrecError(
            f"{path}: truncated or damaged ({error}); copy it again, or take another checkpoint of that run"
        ) from error


def _description(path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    if (header := (metadata or {}).get(HEADER)) is None:
        raise TransrecError(f"{path}: a safetensors file, but not a checkpoint written by transrec")
    try:
        description = parse_json(header)
        if description["format"] != FORMAT:
            raise TransrecError(
                f"{path}: checkpoint format {description['format']}; this version of transrec reads format {FORMAT}"
            )
        for name, kind in DESCRIBED.items():
            if not isinstance(description[name], kind):
                raise TypeError(f"{name} is {description[name]!r}")
        base = description["base"]
        if not (isinstance(base["checkpoint"], str | None) and isinstance(base["frozen_sha256"], str)):
            raise TypeError(f"base is {base!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error
    return description


def damaged(path: Path, error: Exception) -> TransrecError:
    """What to raise for a checkpoint whose description is not as it was written."""
    return TransrecError(
        f"{path}: its description is damaged ({type(error).__name__}: {error}); copy the file again, or take another "
        f"checkpoint of that run"
    )


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise TransrecError naming the tensor where one of a file's holds NaN or infinity."""
    if bad := first_not_finite(tensors):
        raise TransrecError(
            f"{path}: the tensor {bad} holds NaN or infinity; copy the file again, or take another checkpoint"
        )


def trained(module: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: the parameters that train, and the buffers that the method brought along."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad} | _saved_buffers(module)


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: module.get_buffer(name) for name in getattr(module, "saved_buffers", ())}


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and values; "" for no tensors."""
    if not tensors:
        return ""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_fingerprint(module: nn.Module, trained_names: set[str]) -> str:
    """Fingerprint of everything a checkpoint that holds `trained_names` relies on."""
    return fingerprint({name: p for name, p in module.named_parameters() if name not in trained_names})


def check_sizes(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise TransrecError with the flag to give where a checkpoint's sizes differ from the run's."""
    different = {k: v for k, v in theirs.items() if k in ours and ours[k] != v}
    if different:
        remedy = " ".join(f"--{name} {value}" for name, value in different.items())
        had = ", ".join(f"{name} {ours[name]}" for name in different)
        raise TransrecError(f"{path}: was trained with {remedy}, this run has {had}; give {remedy}")


def check_shapes(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise TransrecError where a tensor's shape or type is not that of the one wanted under its name."""
    for name, tensor in tensors.items():
        for what in ("shape", "dtype"):
            is_, must = (getattr(of, what) for of in (tensor, wanted[name]))
            if is_ != must:
                is_, must = (list(of) if what == "shape" else of for of in (is_, must))
                raise TransrecError(
                    f"{path}: {name} is {is_}, this model's is {must}; "
                    f"the checkpoint is of another size or another text encoder, or damaged"
                )


def load_into(module: nn.Module, path: Path, tensors: dict[str, Tensor], frozen: str | None = None) -> None:
    """Copy `tensors` into the parameters, and the method's buffers, of the same names.

    Args:
        frozen: fingerprint that the parameters not among `tensors` must have; None demands that there are none.
            Buffers are never missing.

    Raises TransrecError when a tensor has no place, has another shape or type, or when the rest is not the base that
    the checkpoint was trained on.
    """
    buffers = _saved_buffers(module)
    parameters = dict(module.named_parameters()) | buffers
    if unexpected := sorted(set(tensors) - set(parameters)):
        raise TransrecError(
            f"{path}: holds {len(unexpected)} tensors that this model has no place for, {unexpected[0]} for one; "
            f"it is of another method, another text encoder or another item tower"
        )
    check_shapes(path, tensors, parameters)
    missing = sorted(set(parameters) - set(tensors))
    if needed := missing if frozen is None else sorted(buffers.keys() - tensors.keys()):
        raise TransrecError(f"{path}: lacks {len(needed)} tensors of this model, {needed[0]} for one")
    if missing and frozen_fingerprint(module, set(tensors)) != frozen:
        raise TransrecError(
            f"{path}: was trained on other base weights than these (their hashes differ); give the --text_encoder and "
            f"--checkpoint that its run's options.json names"
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
