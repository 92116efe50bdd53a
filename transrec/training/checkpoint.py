"""Checkpoints: one safetensors file each, whose header holds a JSON description. Nothing is pickled.

A checkpoint holds only what its run trained, buffers that the method brought along included, and describes the base it
needs: the method, the sizes, and a hash of the weights that stayed frozen.
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
    """What a checkpoint needs besides what it holds.

    Attributes:
        checkpoint: the run's own --checkpoint.
        frozen_sha256: fingerprint of the weights that stayed frozen; "" where all trained.
        encoders: where each modality's backbone was, by modality.
    """

    checkpoint: str | None
    frozen_sha256: str
    encoders: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself, in the order of its header.

    Attributes:
        method, method_options: what was inserted, and the values of its flags.
        sizes: what decides what the weights mean, by name.
        item_count: n of the items 1..n where items are learned vectors, else 0.
        options: of the run, those that decide its numbers; {} of earlier releases.
        epoch, validation: of a best checkpoint, which epoch's it is, and the validation metrics of that.
        state, scaler: of a run's state, how far it is, and the loss scaling of fp16.
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
        """Plain values, of what there is."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of(cls, told: Any) -> "Description":
        """What a header tells, whatever else earlier or later releases say in it.

        Raises KeyError, TypeError or ValueError where it is no such description.
        """
        base = {f.name: told["base"][f.name] for f in fields(Base) if f.name in told["base"]}
        known = {f.name: told[f.name] for f in fields(cls) if f.name in told} | {"base": Base(**base)}
        description = cls(**known)
        for owner, kinds in ((description, KINDS), (description.base, BASE_KINDS)):
            for name, kind in kinds.items():
                if not isinstance(value := getattr(owner, name), kind):
                    raise TypeError(f"{name} is {value!r}")
        return description


KINDS = {"method": str, "method_options": dict, "sizes": dict, "item_count": int, "options": dict}
BASE_KINDS = {"checkpoint": str | None, "frozen_sha256": str, "encoders": dict}


def save(path: Path, tensors: dict[str, Tensor], description: Description) -> None:
    """Write tensors and description under a temporary name, then rename.

    Raises FileError when it cannot be written; what stood under the name before stays.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps({"format": FORMAT, **description.as_dict()})})


def read(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], Description]:
    """Tensors (on the CPU), those whose names start with `prefix`, and description of a checkpoint.

    Raises TransrecError when the file is missing, damaged, not one of ours, or holds numbers that are not finite.
    """
    with _opened(path) as file:
        description = _description(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    check_finite(path, tensors)
    return tensors, description


def describe(path: Path) -> Description:
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


def _description(path: Path, metadata: dict[str, str] | None) -> Description:
    if (header := (metadata or {}).get(HEADER)) is None:
        raise TransrecError(f"{path}: a safetensors file, but not a checkpoint written by transrec")
    try:
        told = parse_json(header)
        if told["format"] != FORMAT:
            raise TransrecError(
                f"{path}: checkpoint format {told['format']}; this version of transrec reads format {FORMAT}"
            )
        return Description.of(told)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from error


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
    """SHA-256 over names, shapes, dtypes and values; "" for no tensors. Held in fewer bytes, equal values are equal."""
    if not tensors:
        return ""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = widened(tensors[name].detach().cpu().contiguous())
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
