"""Features, the inputs of item encoders for the items 1..n of a split, and reading them ahead of time.

Features give an item encoder's inputs on one device. Some are held in memory (tokens, item numbers). Others (images)
must be read and decoded: `read` does that on the host, in `workers` processes if any, while the model computes.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from transrec.cpus import usable_cpus
from transrec.data.catalog import Tokens
from transrec.data.groups import call_overhead_tokens
from transrec.errors import MemoryShortage, reported_error
from transrec.processes import holding_signals, serve_parent

if TYPE_CHECKING:
    from transrec.data.images.store import ImageStore


class Features(Protocol):
    """The inputs of one kind of item encoder.

    Attributes:
        workers: number of processes in which `read` should run; 0: none.
    """

    workers: int

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """Return, as host tensors, what must be read for items int64 [N], values 1..n; this needs no device."""

    def inputs(self, items: Tensor, read: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Return the item encoder's inputs on the device; `read` is the result of `read(items)` if called before."""


class BackboneFeatures(Features, Protocol):
    """Inputs of a backbone whose outputs can be cached in a file.

    Attributes:
        digest: SHA-256 of the backbone's inputs for all items, in order.
        host_lengths: int [n], number of tokens of each item; None if all items have the same number.
        call_overhead_tokens: number of tokens that cost the backbone as much as the fixed overhead of one more call.
    """

    digest: str
    host_lengths: np.ndarray | None
    call_overhead_tokens: float

    def __len__(self) -> int:
        """Return n, the number of items."""


class TextFeatures:
    """Token ids of one text per item, held on one device.

    Args:
        tokens: tokens of all items of the catalogue.
        rows: int [n], the catalogue row of each item 1..n.
        width: hidden size D of the backbone that reads the tokens.
    """

    workers = 0

    def __init__(self, tokens: Tokens, rows: np.ndarray, device: torch.device | str = "cpu", width: int = 1):
        self.call_overhead_tokens = call_overhead_tokens(width, torch.device(device))
        self.input_ids = torch.from_numpy(tokens.input_ids[rows]).to(device)
        self.lengths = torch.from_numpy(tokens.lengths[rows]).to(device)
        self.host_lengths = tokens.lengths[rows]
        self.keeps_padding = False

    def __len__(self) -> int:
        return len(self.host_lengths)

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens of all items, in order; it does not depend on the padding."""
        lengths = np.ascontiguousarray(self.host_lengths)
        used = self.input_ids[:, : int(lengths.max(initial=1))].cpu().contiguous()
        return hashlib.sha256(lengths.tobytes() + used.numpy().tobytes()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        # A copy in a worker process only calls `read`, and not every system can send an accelerator's tensors.
        return {}

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """Return nothing: all inputs are in memory."""
        return ()

    def inputs(self, items: Tensor, read: tuple[Tensor, ...] | None = None) -> tuple[Tensor, Tensor]:
        """Return `input_ids` and `attention_mask`, int64 [N, t] each, for items int64 [N] on the host, values 1..n.

        t is the length of the longest of these texts: columns that are padding for all of them are cut off, unless
        `keep_padding` was called.
        """
        lengths = self.host_lengths[items.numpy() - 1]
        longest = self.input_ids.shape[1] if self.keeps_padding else int(lengths.max(initial=1))
        rows = items.to(self.input_ids.device, non_blocking=True) - 1
        positions = torch.arange(longest, device=rows.device)
        attention_mask = positions < self.lengths[rows].unsqueeze(1)
        return self.input_ids[rows, :longest].long(), attention_mask.long()


class AttributeFeatures:
    """Several texts of the same items; the inputs of the texts are concatenated in order."""

    workers = 0

    def __init__(self, parts: Sequence[TextFeatures]):
        self.parts = parts
        self.host_lengths = sum(part.host_lengths for part in parts)
        self.call_overhead_tokens = sum(part.call_overhead_tokens for part in parts)

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """Return nothing: all inputs are in memory."""
        return ()

    def inputs(self, items: Tensor, read: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Return `input_ids` and `attention_mask` of each text of items int64 [N], as in `TextFeatures`."""
        return sum((part.inputs(items) for part in self.parts), ())


def keep_padding(features: "Features") -> None:
    """Make the inputs of texts have all columns from now on, whatever the lengths of the texts."""
    for part in getattr(features, "parts", ()):
        keep_padding(part)
    if isinstance(features, TextFeatures):
        features.keeps_padding = True


class IdFeatures:
    """The item numbers themselves."""

    workers = 0

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = device

    def read(self, items: Tensor) -> tuple[Tensor, ...]:
        """Return nothing: all inputs are in memory."""
        return ()

    def inputs(self, items: Tensor, read: tuple[Tensor, ...] | None = None) -> tuple[Tensor]:
        """Return the items int64 [N], unchanged, on the device."""
        return (items.to(self.device, non_blocking=True),)


class ImageFeatures:
    """The items' images, read from an image store.

    Args:
        store: image store with an image of every item.
        ids: [n], ids of the items 1..n.
    """

    def __init__(self, store: "ImageStore", ids: Sequence[str], device: torch.device | str = "cpu", workers: int = 0):
        self.store, self.ids, self.device, self.workers = store, np.asarray(ids), device, workers
        self.host_lengths, self.call_overhead_tokens = None, 0.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 of the item ids, in order, and of the store's content hash."""
        return hashlib.sha256("\n".join([self.store.content_hash, *self.ids]).encode()).hexdigest()

    def read(self, items: Tensor) -> tuple[Tensor]:
        """Return pixels uint8 [N, 3, S, S]."""
        return (self.store.read(self.ids[items.numpy() - 1].tolist()),)

    def inputs(self, items: Tensor, read: tuple[Tensor, ...] | None = None) -> tuple[Tensor]:
        """Return pixels uint8 [N, 3, S, S] on the device."""
        (pixels,) = read or self.read(items)
        return (pixels.to(self.device, non_blocking=True),)


class MultimodalFeatures:
    """Several kinds of features of the same items; their inputs are concatenated in order."""

    def __init__(self, parts: Sequence[Features]):
        self.parts = parts
        self.workers = max(part.workers for part in parts)
        # If one backbone reads the same amount for every item (images), grouping by the length of texts saves little.
        backbone_parts = [part for part in parts if hasattr(part, "host_lengths")]
        lengths = [part.host_lengths for part in backbone_parts]
        self.host_lengths = None if not lengths or any(length is None for length in lengths) else sum(lengths)
        self.call_overhead_tokens = sum(part.call_overhead_tokens for part in backbone_parts)

    def read(self, items: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return what each part reads."""
        return tuple(part.read(items) for part in self.parts)

    def inputs(self, items: Tensor, read: tuple[tuple[Tensor, ...], ...] | None = None) -> tuple[Tensor, ...]:
        """Return the inputs of all parts."""
        contents = read or [None] * len(self.parts)
        return sum((part.inputs(items, content) for part, content in zip(self.parts, contents, strict=True)), ())


class _Reads(Dataset):
    def __init__(self, make: Callable, items_of: Callable, features: Features, numbers: Sequence[int]):
        self.make, self.items_of, self.features, self.numbers = make, items_of, features, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Any, list[tuple[Tensor, ...]]] | Exception:
        """Return the made object and what was read for it, or the error if it has a message for the user.

        An error raised in a worker process would arrive with a traceback as its text.
        """
        try:
            work = self.make(self.numbers[index])
            return work, [self.features.read(items) for items in self.items_of(work)]
        except Exception as error:
            if reported_error(error) is None:
                raise
            return error


def read_ahead(
    make: Callable[[int], Any], numbers: Sequence[int], items_of: Callable[[Any], list[Tensor]], features: Features
) -> Iterator[tuple[Any, list[tuple[Tensor, ...]]]]:
    """Yield `make(number)` for each number, in order, with what `features` reads for each of its lists of items.

    With `features.workers`, both run ahead in worker processes; the order and the results are the same.

    Raises MemoryShortage if a worker process is lost.
    """
    dataset = _Reads(make, items_of, features, numbers)
    results: Iterable = (dataset[index] for index in range(len(dataset)))
    if features.workers and len(dataset):
        loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=min(features.workers, len(dataset), usable_cpus()),
            worker_init_fn=serve_parent,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
        with holding_signals():
            results = iter(loader)
    try:
        for result in results:
            if isinstance(result, Exception):
                raise result
            yield result
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise MemoryShortage(
            f"a process that reads images was lost, perhaps for lack of memory ({error}); give fewer --image_workers"
        ) from error
    finally:
        # End the workers now: an error's traceback would keep them until it is collected, and then for seconds each.
        del results


def read_blocks_ahead(
    firsts: Sequence[int], size: int, count: int, features: Features
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Yield, for each first row (from 0), a block of up to `size` items int64 and what is read for them.

    The item of row r is r + 1, and there are `count` rows.
    """
    for items, (read,) in read_ahead(partial(_block, size, count), firsts, _as_list, features):
        yield items, read


def _block(size: int, count: int, first: int) -> Tensor:
    return torch.arange(first + 1, min(first + size, count) + 1)


def _as_list(items: Tensor) -> list[Tensor]:
    return [items]
