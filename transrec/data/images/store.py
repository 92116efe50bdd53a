"""Reads images from a store by item id."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import lmdb
import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from transrec.data.images.environment import read_transaction
from transrec.data.images.header import HEADER_KEY, read_header
from transrec.data.images.pictures import jpeg_size
from transrec.errors import TransrecError, is_memory_shortage

NAMED_IN_MESSAGES = 5


class ImageStore:
    """An LMDB image store built by Dataset/build_lmdb.py. It may be used in forked processes and can be pickled.

    Attributes:
        header: the store's metadata.

    Raises TransrecError if there is no such file, or it is not a complete image store of a known format.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        with read_transaction(self.path) as transaction:
            self.header = read_header(transaction, self.path)
            self._header_bytes = bytes(transaction.get(HEADER_KEY) or b"")

    def __reduce__(self):
        return ImageStore, (self.path,)

    @property
    def size(self) -> int:
        """S; the images are S x S pixels."""
        return self.header.size

    @property
    def count(self) -> int:
        """The number of images in the store."""
        return self.header.count

    @property
    def kind(self) -> str:
        """How images are stored: "jpeg" or "raw"."""
        return self.header.kind

    @property
    def content_hash(self) -> str:
        """What identifies the store's images: its source hash, "-" and the hex SHA-256 of its header.

        Earlier releases recorded the source hash alone, which stores of other sizes or qualities share.
        """
        return f"{self.header.source_hash}-{hashlib.sha256(self._header_bytes).hexdigest()}"

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return the ids for which the store has no image, not even a grey one."""
        with read_transaction(self.path) as transaction:
            return [item for item in ids if transaction.get(item.encode()) is None]

    def check(self, ids: Sequence[str]) -> None:
        """Raise TransrecError if the store lacks an image for any of the ids. The message names some of them."""
        if lacking := self.missing(ids):
            raise self._missing_error(lacking, len(ids))

    def read(self, ids: Sequence[str]) -> Tensor:
        """Return the RGB pixels of the ids' images: uint8 [N, 3, S, S].

        Raises TransrecError for an id without an image, a damaged record, or a store replaced since it was opened.
        """
        pixels = torch.empty(len(ids), 3, self.size, self.size, dtype=torch.uint8)
        if self.kind == "raw":
            self._read_raw(ids, pixels.numpy())
        else:
            self._read_jpeg(ids, pixels)
        return pixels

    def _read_raw(self, ids: Sequence[str], pixels: np.ndarray) -> None:
        with read_transaction(self.path) as transaction:
            for item, image, value in zip(ids, pixels, self._values(transaction, ids), strict=True):
                if len(value) != image.size:
                    raise self._damage_error(item, f"{len(value):,} bytes instead of {image.size:,}")
                image[:] = np.frombuffer(value, np.uint8).reshape(image.shape)

    def _read_jpeg(self, ids: Sequence[str], pixels: Tensor) -> None:
        with read_transaction(self.path) as transaction:
            values = [bytearray(value) for value in self._values(transaction, ids)]
        for item, image, value in zip(ids, pixels, values, strict=True):
            try:
                # Check before decoding: a small record may declare gigabytes of pixels.
                if (size := jpeg_size(value)) != (self.size, self.size):
                    raise ValueError(f"it has {size[0]} x {size[1]} pixels")
                decoded = cast(Tensor, decode_jpeg(torch.frombuffer(value, dtype=torch.uint8), mode=ImageReadMode.RGB))
            except (RuntimeError, ValueError) as error:
                if is_memory_shortage(error):
                    raise
                raise self._damage_error(item, str(error)) from error
            image.copy_(decoded)

    def _values(self, transaction: lmdb.Transaction, ids: Sequence[str]) -> Iterator[bytes | memoryview]:
        if transaction.get(HEADER_KEY) != self._header_bytes:
            raise TransrecError(f"{self.path}: another store has taken its place since it was opened; start again")
        for item in ids:
            value = transaction.get(item.encode())
            if value is None:
                raise self._missing_error(self.missing(ids), len(ids))
            yield value

    def _missing_error(self, lacking: list[str], asked_count: int) -> TransrecError:
        named = ", ".join(lacking[:NAMED_IN_MESSAGES]) + (", ..." if len(lacking) > NAMED_IN_MESSAGES else "")
        return TransrecError(
            f"{self.path}: no image of {len(lacking):,} of {asked_count:,} items ({named}); make the store with "
            f"Dataset/build_lmdb.py from the items file of this dataset"
        )

    def _damage_error(self, item: str, fault: str) -> TransrecError:
        return TransrecError(
            f"{self.path}: the image of {item} is damaged ({fault}); make the store again with Dataset/build_lmdb.py "
            f"--overwrite, or copy it again"
        )
