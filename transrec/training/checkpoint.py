"""Checkpoints: single safetensors files whose header holds a JSON description. Nothing is pickled.

A checkpoint holds only the weights that its run trained, including buffers that the method added. It describes the base
model that it needs: the method, the sizes, and a hash of the weights that stayed frozen.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from transrec.errors import TransrecError, about_file
from transrec.finite import first_not_finite
from transrec.models.held import widened
from transrec.paths import atomic_write
from transrec.untrusted import parse_json, safetensors_header

FORMAT = 1
HEADER = "transrec"


@dataclass(frozen=True)
class Base:
    """The base model that a checkpoint needs in addition to the tensors it holds.

    Attributes:
        checkpoint: the --checkpoint that the run itself was given.
        frozen_sha256: fingerprint of the weights that stayed frozen; "" if all weights were trained.
        encoders: path or name of each modality's backbone, by modality.
    """

    checkpoint: str | None
    frozen_sha256: str
    encoders: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """The description of a checkpoint, with fields in the order of the header.

    Attributes:
        method, method_options: name of the adaptation method, and the values of its flags.
        sizes: the options that decide what the weights mean, by name.
        item_count: number of items n if items (1..n) are learned vectors, else 0.
        options: the run's options that affect its numbers; {} in checkpoints of earlier releases.
        epoch, validation: for a best checkpoint, its epoch and the validation metrics of that epoch.
        state, scaler: for a saved state, the run's progress and the loss scaling of fp16.
    """

    method: str
    method_options: dict[str, Any]
    sizes: dict[str, Any]
    item_count: int
    base: Base
    options: dict[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    validation: dict[str, float] | None = None
    state: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that are not None as plain values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_header(cls, content: Any) -> "Description":
        """Return the description in a header, ignoring fields that only earlier or later releases write.

        Raises KeyError, TypeError or ValueError if the header holds no valid description.
        """
        base = {f.name: content["base"][f.name] for f in fields(Base) if f.name in content["base"]}
        known = {f.name: content[f.name] for f in fields(cls) if f.name in content} | {"base": Base(**base)}
        description = cls(**known)
        for owner, kinds in ((description, KINDS), (description.base, BASE_KINDS)):
            for name, kind in kinds.items():
                if not isinstance(value := getattr(owner, name), kind):
                    raise TypeError(f"{name} is {value!r}")
        return description


KINDS = {"method": str, "method_options": dict, "sizes": dict, "item_count": int, "options": dict}
BASE_KINDS = {"checkpoint": str | None, "frozen_sha256": str, "encoders": dict}


def save(path: Path, tensors: dict[str, Tensor], description: Description) -> None:
    """Write tensors and description to a temporary file, then rename it.

    Raises FileError if the file cannot be written; an earlier file of that name is then left as it was.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps({"format": FORMAT, **description.as_dict()})})


def read(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], Description]:
    """Return a checkpoint's tensors whose names start with `prefix`, on the CPU, and its description.

    Raises TransrecError if the file is missing, damaged, not written by transrec, or holds numbers that are not finite.
    """
    with _opened(path) as file:
        description = _description(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    check_finite(path, tensors)
    return tensors, description


def describe(path: Path) -> Description:
    """Return only the description of a checkpoint. Raises TransrecError like `read`."""
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


def _description(path: Path, metadata: dict[str, str] | None) -> Description:
    if (header := (metadata or {}).get(HEADER)) is None:
        raise TransrecError(f"{path}: a safetensors file, but not a checkpoint written by transrec")
    try:
        content = parse_json(header)
        if content["format"] != FORMAT:
            raise TransrecError(
                f"{path}: checkpoint format {content['format']}; this version of transrec reads format {FORMAT}"
            )
        return Description.from_header(content)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> TransrecError:
    """Return the error to raise for a checkpoint whose description is damaged."""
    return TransrecError(
        f"{path}: its description is damaged ({type(error).__name__}: {error}); copy the file again, or take another "
        f"checkpoint of that run"
    )


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise TransrecError, naming the tensor, if a tensor of the file holds NaN or infinity."""
    if bad := first_not_finite(tensors):
        raise TransrecError(
            f"{path}: the tensor {bad} holds NaN or infinity; copy the file again, or take another checkpoint"
        )


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that training changes, by name: trainable parameters and buffers that the method added."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad} | _saved_buffers(module)


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: module.get_buffer(name) for name in getattr(module, "saved_buffers", ())}


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes, dtypes and values; "" for no tensors.

    bfloat16 and float16 tensors are hashed as float32, so the dtype in which weights are held does not matter.
    """
    if not tensors:
        return ""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = widened(tensors[name].detach().cpu().contiguous())
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def frozen_fingerprint(module: nn.Module, trained_names: set[str]) -> str:
    """Return the fingerprint of all parameters that a checkpoint of `trained_names` needs but does not hold."""
    return fingerprint({name: p for name, p in module.named_parameters() if name not in trained_names})


def check_sizes(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise TransrecError, naming the flags to give, if a checkpoint's sizes differ from the run's."""
    different = {k: v for k, v in theirs.items() if k in ours and ours[k] != v}
    if different:
        remedy = " ".join(f"--{name} {value}" for name, value in different.items())
        had = ", ".join(f"{name} {ours[name]}" for name in different)
        raise TransrecError(f"{path}: was trained with {remedy}, this run has {had}; give {remedy}")


def check_shapes(path: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise TransrecError if a tensor's shape or dtype differs from the tensor of the same name in `wanted`."""
    for name, tensor in tensors.items():
        for what in ("shape", "dtype"):
            actual, expected = (getattr(either, what) for either in (tensor, wanted[name]))
            if actual != expected:
                actual, expected = (list(value) if what == "shape" else value for value in (actual, expected))
                raise TransrecError(
                    f"{path}: {name} is {actual}, this model's is {expected}; "
                    f"the checkpoint is of another size or another text encoder, or damaged"
                )


def load_into(module: nn.Module, path: Path, tensors: dict[str, Tensor], frozen: str | None = None) -> None:
    """Copy `tensors` into the module's parameters and the method's buffers of the same names.

    Args:
        frozen: fingerprint that the parameters missing from `tensors` must have. None: no parameter may be missing.
            The method's buffers may never be missing.

    Raises TransrecError if the module has no tensor of that name, if a shape or dtype differs, or if the remaining
    parameters are not the base weights that the checkpoint was trained on.
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
