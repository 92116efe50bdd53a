"""Hidden states of every item, computed once and kept in a memory-mapped file from which runs train.

A file holds the pooled states of one backbone for all items of a catalogue, in catalogue order: a safetensors file with
one tensor, `states` [items, K, D]. The header records the provenance of the states, and the file name contains the
digest of the provenance. One or several processes write the states block by block to a partial file in the same folder,
which is renamed when it is complete.
"""

import hashlib
import json
import math
import mmap
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from transrec.data.groups import call_overhead_tokens
from transrec.errors import NO_ROOM, TransrecError, about_file, file_error
from transrec.finite import is_finite
from transrec.locks import share
from transrec.untrusted import parse_json, safetensors_header

FORMAT = 1
DTYPES = {"fp16": ("F16", np.float16), "fp32": ("F32", np.float32)}
BLOCK_ITEMS = 256
DIGEST_BYTES = 16
NO_DIGEST = b"0" * DIGEST_BYTES
# How many digits of the provenance's digest are part of the file name.
NAME_DIGITS = 16
# Prefix of a provenance's `states` if the file holds the states of all tokens.
TOKENS = "tokens "


@dataclass(frozen=True)
class Provenance:
    """Everything that determines the hidden states of a catalogue's items. Equal provenances share one file of states.

    Attributes:
        modality: the kind of input that the backbone reads.
        model_type: the model type in the backbone's configuration.
        weights: digest of the backbone's configuration and weights, or the name and commit of a hub model; followed by
            the seed of random weights and by the dtype to which --encoder_dtype rounds weights, if either applies.
        checkpoint: SHA-256 of the recommender that the backbone was taken from; None for the pretrained backbone.
        inputs: digest of the backbone's inputs of all items, in catalogue order.
        preprocessing: what is done to the inputs before they reach the backbone; nothing for texts.
        pooling: how a layer's output is reduced to one vector per item.
        states: the numbers of the stored states, 0 for the embedding layer and k for block k; "output" for the
            backbone's output for an item only; "tokens K" for state K of every token, one row per token.
        dtype: the dtype in which states are stored, fp16 or fp32.
        precision: the precision in which states are computed.
        about: information for people: the names of the encoder, the dataset and the checkpoint, if any. It does not
            affect the states.
    """

    modality: str
    model_type: str
    weights: str
    checkpoint: str | None
    inputs: str
    preprocessing: dict[str, Any]
    pooling: str
    states: list[int] | str
    dtype: str
    precision: str
    about: dict[str, str] = field(default_factory=dict, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as stored in the header of a file."""
        return json.loads(json.dumps(asdict(self)))

    def identity(self) -> dict[str, Any]:
        """Return the entries of `as_dict` that determine the states."""
        return {name: value for name, value in self.as_dict().items() if name != "about"}

    @property
    def file_name(self) -> str:
        """The file name for these states, unique to this provenance."""
        text = json.dumps({"format": FORMAT, **self.identity()}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:NAME_DIGITS]
        return f"states-{self.modality}-{self.model_type}-{digest}.safetensors"


def read_provenance(path: Path) -> dict[str, Any]:
    """Return the provenance in the header of a complete or partial file of hidden states, and the states' "shape".

    Raises FileError if the file cannot be read, TransrecError as `check_regular` does, and DamagedStates if it is not a
    file of hidden states.
    """
    provenance, shape, _, _ = _read_header(path)
    return provenance | {"shape": list(shape)}


class DamagedStates(TransrecError):
    """Raised for a file that does not hold the hidden states expected of it.

    Attributes:
        fault: the file and what is wrong with it; the message adds what to do.
    """

    def __init__(self, fault: str):
        super().__init__(f"{fault}; delete it, and it will be made again")
        self.fault = fault


def _read_header(path: Path) -> tuple[dict[str, Any], tuple[int, ...], type, int]:
    """Read a file's header: the provenance, shape and dtype of its states, and the byte at which they begin."""
    try:
        header, start = safetensors_header(path)
        provenance = dict(parse_json(header["__metadata__"]["transrec"]))
        tensor = header["states"]
        dtype = next(numpy for name, numpy in DTYPES.values() if name == tensor["dtype"])
        return provenance, tuple(int(length) for length in tensor["shape"]), dtype, start
    except OSError as error:
        raise file_error(error, path, what="cannot read the hidden states") from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise DamagedStates(f"{path}: not a file of hidden states ({error!r})") from error


def _make_header(shape: tuple[int, ...], dtype: str, provenance: dict[str, Any], blocks: int) -> tuple[bytes, int]:
    """Return a safetensors header (length, then JSON padded to align the data) and the offset of its block digests."""
    length = int(np.prod(shape)) * np.dtype(DTYPES[dtype][1]).itemsize
    content = {
        "__metadata__": {
            "blocks": NO_DIGEST.decode() * blocks,
            "transrec": json.dumps({"format": FORMAT, **provenance}, sort_keys=True),
        },
        "states": {"dtype": DTYPES[dtype][0], "shape": list(shape), "data_offsets": [0, length]},
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 64 + 56)
    header = len(text).to_bytes(8, "little") + text
    return header, header.index(NO_DIGEST)


def _reserve(path: Path, length: int) -> None:
    """Extend the file to that length, and reserve the disk space if the system supports it."""
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)


class StateFile:
    """A complete file of hidden states, memory-mapped; a shared lock protects it from removal while it is open.

    Args:
        provenance: the values that determine the expected states; see `StateBuilder`.

    Attributes:
        states: numpy [items, K, D], memory-mapped and read-only, float16 or float32.

    Raises FileError if the file cannot be read, TransrecError if it is not a regular file, and DamagedStates if it is
    cut off or holds other states.
    """

    def __init__(self, path: Path, provenance: dict[str, Any]):
        self.path = path
        recorded, shape, dtype, self._start = _read_header(path)
        expected = {"format": FORMAT, **provenance}
        different = [
            f"{name} {recorded.get(name)!r}, now {value!r}"
            for name, value in expected.items()
            if recorded.get(name) != value
        ]
        if different:
            raise DamagedStates(f"{path}: was made of something else: {'; '.join(different)}")
        length = self._start + math.prod(shape) * np.dtype(dtype).itemsize
        if path.stat().st_size != length:
            raise DamagedStates(f"{path}: cut off, {path.stat().st_size:,} of {length:,} bytes are left")
        with about_file(path, what="cannot read the hidden states"):
            self._file = open(path, "rb")
            share(self._file.fileno())
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self.states = np.frombuffer(self._map, dtype, offset=self._start).reshape(shape)

    def pick(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the states of rows, int [N], scattered over a file that may exceed memory: [N, K, D].

        Hints to the system keep it from waiting for the disk page by page, or reading far more than was asked for.
        """
        if hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_RANDOM)
            ordered, size = np.unique(rows), self.states[0].nbytes
            for run in np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1):
                start = self._start + int(run[0]) * size
                page = start - start % mmap.PAGESIZE
                self._map.madvise(mmap.MADV_WILLNEED, page, start + len(run) * size - page)
        return self.states[rows]


class StateBuilder:
    """The partial file in which one or several processes build a `StateFile`.

    The header holds a digest of each block, or zeros if the block is not written yet. A block counts as done only if
    its digest matches its states: after a killed process or a full disk, intact blocks are kept and all others are
    computed again.

    Args:
        path: the path of the finished file.
        shape: items, K, D.
        provenance: everything that the states depend on, as plain values; see `Provenance`.
        bounds: the first row of each block, followed by the number of rows; by default, blocks have 256 rows.

    One process begins and finishes the file; other processes may help to fill it in between.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        dtype: str,
        provenance: dict[str, Any],
        bounds: Sequence[int] | None = None,
    ):
        self.path, self.shape = path, shape
        self.numpy_dtype = DTYPES[dtype][1]
        self.bounds = [*range(0, shape[0], BLOCK_ITEMS), shape[0]] if bounds is None else list(bounds)
        self.blocks = self.bounds[:-1]
        self.header, self._digests_at = _make_header(shape, dtype, provenance, len(self.blocks))
        self.partial = path.with_name(f".{path.name}.partial")
        self.row_bytes = int(np.prod(shape[1:])) * np.dtype(self.numpy_dtype).itemsize
        self.length = len(self.header) + shape[0] * self.row_bytes

    def begin(self) -> int:
        """Continue a partial file of exactly these states, or start a new one. Returns the same as `count_written`."""
        try:
            if not self._is_begun():
                if self.partial.is_dir():
                    self.partial.rmdir()
                self.partial.unlink(missing_ok=True)
                self.partial.write_bytes(self.header)
                _reserve(self.partial, self.length)
        except OSError as error:
            with suppress(OSError):
                self.partial.unlink()
            raise self._write_error(error) from error
        return self.count_written()

    def _is_begun(self) -> bool:
        if not self.partial.is_file() or self.partial.stat().st_size != self.length:
            return False
        digests = slice(self._digests_at, self._digests_at + DIGEST_BYTES * len(self.blocks))
        with open(self.partial, "rb") as file:
            header = bytearray(file.read(len(self.header)))
        header[digests] = self.header[digests]
        return header == self.header

    def count_written(self) -> int:
        """Count the blocks that have a digest, without reading their states."""
        with open(self.partial, "rb") as file:
            file.seek(self._digests_at)
            return sum(file.read(DIGEST_BYTES) != NO_DIGEST for _ in self.blocks)

    def pending_blocks(self, rank: int, ranks: int) -> list[int]:
        """Return the first rows of the blocks that process `rank` of `ranks` still has to compute."""
        with open(self.partial, "rb") as file:
            return [row for row in self.blocks[rank::ranks] if not self._is_done(file, row)]

    def _is_done(self, file: BinaryIO, first_row: int) -> bool:
        file.seek(self._digest_at(first_row))
        digest = file.read(DIGEST_BYTES)
        if digest == NO_DIGEST:
            return False
        file.seek(self._states_at(first_row))
        rows = self.bounds[self._number(first_row) + 1] - first_row
        return digest == _digest(file.read(rows * self.row_bytes))

    def _number(self, first_row: int) -> int:
        return bisect_left(self.bounds, first_row)

    def _states_at(self, first_row: int) -> int:
        return len(self.header) + first_row * self.row_bytes

    def _digest_at(self, first_row: int) -> int:
        return self._digests_at + self._number(first_row) * DIGEST_BYTES

    def write_block(self, first_row: int, states: Tensor) -> None:
        """Write the states [N, K, D] of a block to disk, then its digest."""
        if not torch.isfinite(states).all():
            raise TransrecError(
                f"the hidden states of items {first_row + 1:,} and on are not finite; use --precision fp32"
            )
        values = states.cpu().to(getattr(torch, np.dtype(self.numpy_dtype).name))
        if not torch.isfinite(values).all():
            raise TransrecError("hidden states exceed what float16 holds; use --state_dtype fp32")
        content = values.numpy().tobytes()
        if len(content) != len(states) * self.row_bytes:
            raise TransrecError(
                f"the encoder gave states of the shape {tuple(states.shape[1:])} an item, which is not that of its "
                f"configuration; use another encoder"
            )
        try:
            with open(self.partial, "r+b") as file:
                file.seek(self._states_at(first_row))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                file.seek(self._digest_at(first_row))
                file.write(_digest(content))
        except OSError as error:
            raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> TransrecError:
        if error.errno not in NO_ROOM:
            return file_error(error, self.path, "give another folder with --state_cache", "cannot be written")
        return TransrecError(
            f"{self.path}: no room for {self.length / 2**20:,.1f} MiB of hidden states ({error.strerror}); make room, "
            f"give another folder with --state_cache, read fewer layers, use --state_dtype fp16, or --cached no"
        )

    def finish(self) -> None:
        """Rename the partial file, which must be complete, to its final name."""
        os.replace(self.partial, self.path)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES // 2).hexdigest().encode()


class StateFeatures:
    """Hidden states of the items 1..n of a split, for one modality.

    Args:
        file: the states of the entire catalogue.
        rows: int [n], the catalogue row of each item 1..n.
        place: "gpu" or "cpu" to hold all states in that memory, "disk" to read those of each batch; "auto" chooses the
            first of gpu and cpu with enough room, else disk.

    Files are written with finite numbers only. Damage is detected when states are read: before training if all are held
    in memory, batch by batch if they stay on disk.

    Raises TransrecError if states are not finite.
    """

    workers = 0

    def __init__(
        self,
        file: StateFile,
        rows: np.ndarray,
        device: torch.device,
        place: Literal["auto", "gpu", "cpu", "disk"] = "auto",
    ):
        self.file, self.rows, self.device = file, rows, device
        size = len(rows) * file.states[0].nbytes
        self.place = _place(size, device) if place == "auto" else place
        self.held: Tensor | None = None
        if self.place != "disk":
            held = torch.from_numpy(file.states[rows])
            self._check(held, rows)
            self.held = held.to(device if self.place == "gpu" else "cpu")

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that read the inputs of other features do not need these states.
        return {}

    def _check(self, states: Tensor, rows: np.ndarray) -> None:
        if is_finite(states):
            return
        bad = next(row for row, state in zip(rows, states, strict=True) if not is_finite(state))
        raise TransrecError(
            f"{self.file.path}: the hidden states of item {bad + 1:,} of the items file hold NaN or infinity; delete "
            f"the file, and it will be made again"
        )

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """Return nothing: gathering rows takes less time than passing them between processes."""
        return ()

    def inputs(self, items: Tensor, read: tuple[Tensor, ...] | None = None) -> tuple[Tensor]:
        """Return states float16 or float32 [N, K, D] on the device, for items int64 [N] on the host, values 1..n."""
        if self.held is None:
            rows = self.rows[items.numpy() - 1]
            states = torch.from_numpy(self.file.pick(rows))
            self._check(states, rows)
        else:
            states = self.held[(items - 1).to(self.held.device, non_blocking=True)]
        return (states.to(self.device, non_blocking=True),)


class TokenStateFeatures(StateFeatures):
    """Hidden states of all tokens of the items 1..n, from which a backbone continues, and the backbone's other inputs.

    Args:
        file: one row per token, for the items 1..n in order.
        lengths: int [n], the number of tokens of each item.
        others: returns the backbone's other inputs for items int64 [N] on the host.
    """

    def __init__(
        self,
        file: StateFile,
        lengths: np.ndarray,
        others: Callable[[Tensor], tuple[Tensor, ...]],
        device: torch.device,
        place: Literal["auto", "gpu", "cpu", "disk"] = "auto",
    ):
        super().__init__(file, np.arange(len(file.states)), device, place)
        self.host_lengths, self.others = lengths, others
        self.call_overhead_tokens = call_overhead_tokens(file.states.shape[-1], device)
        self.starts = np.cumsum(lengths) - lengths

    def inputs(self, items: Tensor, read: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Return states float16 or float32 [N, T, D] on the device, zero after an item's last token, and other inputs.

        T is the number of tokens of the longest of the items.
        """
        rows = items.numpy() - 1
        lengths = self.host_lengths[rows]
        positions = np.arange(lengths.max(initial=1))
        used = torch.from_numpy(positions < lengths[:, None])
        tokens = torch.from_numpy((self.starts[rows, None] + positions)[used.numpy()] + 1)
        (states,) = super().inputs(tokens)
        padded = states.new_zeros(*used.shape, states.shape[-1])
        padded[used.to(self.device, non_blocking=True)] = states[:, 0]
        return padded, *self.others(items)


def _place(size: int, device: torch.device) -> str:
    """Return "gpu" or "cpu", the first with more than twice `size` bytes of free memory, else "disk"."""
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > 2 * size:
        return "gpu"
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        # macOS and Windows do not report free memory; they cache what was read from disk if there is room.
        return "disk"
    return "cpu" if free > 2 * size else "disk"
