"""Sources of images: a folder, a zip, or an LMDB of the original programs.

A source can be pickled and sent to another process, which opens the files again.
"""

import hashlib
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Set
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol
from urllib.parse import quote

from PIL import Image

from transrec.data.images.environment import read_transaction
from transrec.data.images.original import read_original
from transrec.data.images.pictures import Problem, check_pixels, decode
from transrec.errors import TransrecError, about_file, file_error, is_memory_shortage
from transrec.untrusted import check_regular, read_regular

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp"}
HUGE_BYTES = 2**29
# Characters that some system forbids in file names, and any % that would read as a percent-encoded character.
NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|]|%(?=[0-9A-F]{2})')
LONGEST_STEM_BYTES = 200


class ImageEntry(NamedTuple):
    """An image: its name in the source, its size there in bytes, and a digest of its content if sizes are all alike."""

    name: str
    bytes: int
    content: str = ""


class Source(Protocol):
    def find(self, ids: Set[str]) -> dict[str, list[ImageEntry]]:
        """Return the images of each id that has any. Raises TransrecError if the source cannot be read."""
        ...

    def load(self, entry: ImageEntry, convert: bool) -> tuple[Image.Image, str]:
        """Return an RGB image, and what was converted ("" if nothing). Raises Problem if the image is unusable."""
        ...


def stem(item: str) -> str:
    """Return the name, without extension, of an item's image file: the item id, escaped so that names stay unique.

    Characters that file names may not contain are percent-encoded (%2F for /). An id that is too long for a file name
    becomes its SHA-256.
    """
    if len(item.encode()) > LONGEST_STEM_BYTES:
        return f"%{hashlib.sha256(item.encode()).hexdigest().upper()}"
    if not item.strip("."):
        return "%2E" * len(item)
    escaped = NOT_IN_NAMES.sub(lambda letter: quote(letter[0], safe=""), item)
    return "".join(letter if letter.isprintable() else quote(letter) for letter in escaped)


def _by_stem(ids: Set[str]) -> dict[str, str]:
    """Return the items by the possible stems of their image files: `stem` or the bare id."""
    return {item: item for item in ids} | {stem(item): item for item in ids}


class Folder:
    """Image files at any depth in a folder; the name before the extension is the item's `stem` or bare id."""

    def __init__(self, path: Path):
        self.path = path

    def find(self, ids: Set[str]) -> dict[str, list[ImageEntry]]:
        entries, items = defaultdict(list), _by_stem(ids)
        for folder, _, names in os.walk(self.path, onerror=self._unreadable):
            for name in names:
                before, extension = os.path.splitext(name)
                if before in items and extension.lower() in EXTENSIONS:
                    file = Path(folder, name)
                    relative = file.relative_to(self.path).as_posix()
                    entries[items[before]].append(ImageEntry(relative, file.stat().st_size if file.exists() else 0))
        return entries

    def _unreadable(self, error: OSError) -> None:
        raise file_error(error, what="cannot read the folder")

    def load(self, entry: ImageEntry, convert: bool) -> tuple[Image.Image, str]:
        _check_bytes(entry)
        try:
            data = read_regular(self.path / entry.name, HUGE_BYTES)
        except (OSError, TransrecError) as error:
            if is_memory_shortage(error):
                raise
            raise Problem(f"unreadable: {getattr(error, 'strerror', None) or error}") from error
        return decode(data, convert)


class Zip:
    """Image files anywhere in a zip; the name before the extension is the item's `stem` or bare id."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: zipfile.ZipFile | None = None

    def __getstate__(self) -> dict:
        return vars(self) | {"_archive": None}

    def find(self, ids: Set[str]) -> dict[str, list[ImageEntry]]:
        entries, items = defaultdict(list), _by_stem(ids)
        try:
            check_regular(self.path)
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    name = PurePosixPath(member.filename)
                    if name.stem in items and name.suffix.lower() in EXTENSIONS and not member.is_dir():
                        entries[items[name.stem]].append(ImageEntry(member.filename, member.file_size))
        except (OSError, zipfile.BadZipFile) as error:
            raise TransrecError(
                f"{self.path}: neither a folder nor a readable zip ({error}); check --images"
            ) from error
        return entries

    def load(self, entry: ImageEntry, convert: bool) -> tuple[Image.Image, str]:
        _check_bytes(entry)
        with about_file(self.path, what="cannot be read"):
            self._archive = self._archive or zipfile.ZipFile(self.path)
        try:
            if self._archive.getinfo(entry.name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # With other methods zipfile decompresses everything before it checks the size.
                raise Problem("unreadable: compressed by something other than deflate; make the zip again")
            with self._archive.open(entry.name) as member:
                data = member.read(entry.bytes + 1)
        except (MemoryError, Problem):
            raise
        # zipfile raises its own errors, RuntimeError if encrypted, NotImplementedError, and those of each compression.
        except Exception as error:
            raise Problem(f"unreadable: {error}") from error
        return decode(data, convert)


class OriginalStore:
    """An LMDB of pickled images, keyed by item id."""

    def __init__(self, path: Path):
        self.path = path

    def find(self, ids: Set[str]) -> dict[str, list[ImageEntry]]:
        with read_transaction(self.path) as transaction:
            values = ((item, transaction.get(item.encode())) for item in ids)
            return {item: [_original_entry(item, value)] for item, value in values if value is not None}

    def load(self, entry: ImageEntry, convert: bool) -> tuple[Image.Image, str]:
        _check_bytes(entry)
        with read_transaction(self.path) as transaction:
            value = bytes(transaction.get(entry.name.encode()) or b"")
        try:
            pixels = read_original(value)
        except TransrecError as error:
            raise Problem(f"unreadable: {error}") from error
        check_pixels(pixels.shape[1], pixels.shape[0])
        return Image.fromarray(pixels), ""


def _original_entry(item: str, value: bytes | memoryview) -> ImageEntry:
    # The records are not compressed, so all images of one size have equally many bytes.
    return ImageEntry(item, len(value), hashlib.blake2b(value, digest_size=16).hexdigest())


def open_source(path: Path, original: bool) -> Source:
    """Return the source at `path`. Raises TransrecError if nothing is there."""
    if not path.exists():
        flag = "--import_original" if original else "--images"
        raise TransrecError(f"{path}: no such file or folder; check {flag}")
    if original:
        return OriginalStore(path)
    return Folder(path) if path.is_dir() else Zip(path)


def _check_bytes(entry: ImageEntry) -> None:
    if entry.bytes > HUGE_BYTES:
        raise Problem(f"huge: {entry.bytes:,} bytes")
