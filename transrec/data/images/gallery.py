"""Opens the pictures of a dataset's items for viewing, whether they are in a store, a folder or a zip."""

import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from transrec.cpus import usable_cpus
from transrec.data.dataset import find_images
from transrec.data.images.pictures import Problem
from transrec.data.images.sources import open_source
from transrec.errors import TransrecError, is_memory_shortage
from transrec.paths import resolve
from transrec.progress import Bar

if TYPE_CHECKING:
    from transrec.data.images.store import ImageStore

# Number of pictures in a block that one thread opens.
PICTURES_PER_BLOCK = 32


class Gallery:
    """The pictures of some items: in a store, a folder or a zip.

    Attributes:
        missing: ids of the items without a picture, or with a grey one in its place.
    """

    def __init__(self, missing: set[str]):
        self.missing = missing

    def picture(self, item: str) -> Image.Image:
        """Return the RGB picture of an item that has one. Raises Problem if the picture cannot be decoded."""
        raise NotImplementedError

    def broken(self, items: Iterable[str]) -> dict[str, str]:
        """Open the picture of each item that has one, with a progress bar; return why some cannot be decoded, by item.

        Decoding releases the GIL, so the pictures are opened in one thread per usable CPU.
        """
        there, faults = [item for item in items if item not in self.missing], {}
        pool = ThreadPoolExecutor(usable_cpus())
        try:
            # Decoding an image sets and restores the warning filters of all threads, so restore them at the end.
            with (
                warnings.catch_warnings(),
                Bar(total=len(there), desc="open pictures", unit="picture", leave=False) as bar,
            ):
                blocks = [
                    there[start : start + PICTURES_PER_BLOCK] for start in range(0, len(there), PICTURES_PER_BLOCK)
                ]
                for block, new in zip(blocks, pool.map(self._faults, blocks), strict=True):
                    faults |= new
                    bar.update(len(block))
        finally:
            pool.shutdown(cancel_futures=True)
        return faults

    def _faults(self, items: list[str]) -> dict[str, str]:
        """Return the reason for each picture that cannot be decoded, by item."""
        faults = {}
        for item in items:
            try:
                self.picture(item)
            except Problem as problem:
                faults[item] = str(problem)
        return faults


class StoreGallery(Gallery):
    """The pictures of an image store."""

    def __init__(self, store: "ImageStore", ids: list[str]):
        super().__init__({*store.missing(ids), *store.header.grey})
        self.store = store

    def picture(self, item: str) -> Image.Image:
        try:
            return Image.fromarray(self.store.read([item])[0].permute(1, 2, 0).numpy())
        except TransrecError as error:
            if is_memory_shortage(error):
                raise
            raise Problem(f"unreadable: {error}") from error


class FileGallery(Gallery):
    """The pictures of a folder or zip. If an item has several files, the first by name is used."""

    def __init__(self, path: Path, ids: list[str]):
        self.source = open_source(path, original=False)
        self.files = {item: min(entries) for item, entries in self.source.find(set(ids)).items()}
        super().__init__(set(ids) - self.files.keys())

    def picture(self, item: str) -> Image.Image:
        return self.source.load(self.files[item], convert=True)[0]


def open_gallery(folder: Path, images: str | None, ids: list[str]) -> Gallery | None:
    """Open the pictures in `images` (a store, folder or zip), by default the store in a dataset's folder, if any.

    Raises TransrecError if there is nothing at `images`, or the store is damaged or ambiguous.
    """
    if images and Path(images).suffix != ".lmdb":
        return FileGallery(resolve(images), ids)
    if images or any(folder.glob("*.lmdb")):
        return StoreGallery(find_images(folder, images), ids)
    return None
