"""Reads files that anybody may have written: only regular files, and only up to a plausible size."""

import io
import json
import math
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transrec.errors import TransrecError, about_file, reason_of

JSON_BYTES = SAFETENSORS_HEADER_BYTES = 2**24
TOKENIZER_BYTES = 2**28

SPECIAL_FILES = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}


def check_regular(path: str | Path) -> None:
    """Check that `path` is a regular file or a link to one, because reading anything else may never end.

    Raises OSError if `path` cannot be examined, and TransrecError if it is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise TransrecError(f"{path}: not a path ({error}); check it") from error
    if not stat.S_ISREG(mode):
        kind = next((name for fits, name in SPECIAL_FILES.items() if fits(mode)), "a device")
        raise TransrecError(f"{path}: is {kind}, and only regular files are read; write what it holds to one")


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open the regular file at `path` for reading bytes. Raises OSError, and the errors of `check_regular`."""
    check_regular(path)
    return open(path, "rb")


def read_regular(path: str | Path, max_bytes: int) -> bytes:
    """Return all bytes of a regular file.

    Raises the errors of `open_regular`, and TransrecError if the file has more than `max_bytes`.
    """
    with open_regular(path) as file:
        # read() allocates as much memory as it is asked to read.
        content = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    if len(content) > max_bytes:
        raise TransrecError(f"{path}: has more than {max_bytes:,} bytes, which no such file has; check what it is")
    return content


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError if the text is not JSON, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | Path) -> Any:
    """Return the value in a JSON file. Raises the errors of `read_regular` and `parse_json`."""
    return parse_json(read_regular(path, JSON_BYTES))


def read_object(path: str | Path, flag: str) -> dict[str, Any]:
    """Return the JSON object in the file given by a flag. Raises TransrecError if the file holds none."""
    with about_file(path, f"give another file with {flag}", "cannot be read"):
        try:
            content = read_json(path)
        except ValueError as error:
            raise TransrecError(f"{path}: is not JSON ({reason_of(error)}); mend it, or leave out {flag}") from error
    if not isinstance(content, dict):
        raise TransrecError(f"{path}: must hold an object with names, not {type(content).__name__}")
    return content


def safetensors_header(path: str | Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and the byte at which its tensors begin.

    Raises OSError, the errors of `check_regular`, and ValueError if the header is absurdly long or not a JSON object.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > SAFETENSORS_HEADER_BYTES:
            raise ValueError(f"its header would have {length:,} bytes")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length


ITEM_BYTES = {
    **dict.fromkeys(
        ("ByteStorage", "CharStorage", "BoolStorage", "UntypedStorage", "QUInt8Storage", "QInt8Storage"), 1
    ),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}


class Unpickler(pickle._Unpickler):
    """The unpickler written in Python, except that it refuses to look up any class or function.

    The unpickler in C allocates memory for as many objects as a pickle announces.
    """

    # Without BYTEARRAY8, the only operation for which the one in Python does so, too.
    dispatch: ClassVar[dict] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class _Anything:
    """Replaces every class that a pickle names: accepts any arguments and does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass

    def append(self, value):
        pass

    extend = add = append


class _Storages(Unpickler):
    """Collects in `declared` the tensor storages that the pickle in a torch.save archive refers to."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.declared: list[tuple] = []

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] not in ("torch", "collections", "_codecs"):
            return super().find_class(module, name)
        return type(name, (_Anything,), {})

    def persistent_load(self, pid: Any) -> Any:
        self.declared.append(pid)
        return _Anything()


def map_npy(path: Path) -> np.ndarray:
    """Return the array of a .npy file, memory-mapped and read-only.

    Raises TransrecError if the file was not written by numpy.save, holds pickled objects, or is cut off.
    """
    with open_regular(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version > (2, 0):
                raise ValueError(f"version {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(file)
            if min(shape, default=0) < 0:
                raise ValueError(f"shape {shape}")
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise TransrecError(
                f"{path}: not a .npy file that numpy wrote ({reason_of(error)}); save it with numpy.save"
            ) from error
        start = file.tell()
    if dtype.hasobject:
        raise TransrecError(f"{path}: holds pickled Python objects, which are never unpickled; save plain numbers")
    return map_array(path, dtype, start, shape, is_fortran)


def map_array(path: Path, dtype: np.dtype, start: int, shape: tuple[int, ...], is_fortran: bool = False) -> np.ndarray:
    """Memory-map an array that begins at byte `start` of a file. Raises TransrecError if the file is cut off."""
    end = start + math.prod(shape) * dtype.itemsize
    if (size := path.stat().st_size) < end:
        raise TransrecError(f"{path}: cut off, {size:,} of {end:,} bytes are left; copy it again")
    # An array without items cannot be mapped. A scalar is not read either, since callers refuse it for its shape.
    if 0 in shape or not shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order="F" if is_fortran else "C")


def check_torch_file(path: Path) -> None:
    """Check that a file of torch.save holds what it declares, so that torch can allocate memory for it and read it.

    Raises OSError, and the errors of `check_regular`. Also raises TransrecError if the file names objects other than
    torch's own and plain containers, or if its tensors are compressed or larger than the stored data.
    """
    with open_regular(path) as file:
        if file.read(4) != b"PK\3\4":
            # Files of PyTorch before 1.6 are read from start to end and declare no sizes that would be believed.
            return
        try:
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive, os.fstat(file.fileno()).st_size)
        # A pickle that was not written by pickle can raise any exception.
        except Exception as error:
            raise TransrecError(
                f"{path}: damaged, or holds objects other than tensors, which are never unpickled "
                f"({error or type(error).__name__}); copy it again"
            ) from error


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members would be larger than the file")
    sizes = {member.filename.lower(): member.file_size for member in members}
    if len(sizes) != len(members):
        raise ValueError("two members have one name")
    root = members[0].filename.partition("/")[0].lower()
    pickled = next((member for member in members if member.filename.lower() == f"{root}/data.pkl"), None)
    if pickled is None:
        raise ValueError("it has no data.pkl")
    storages = _Storages(archive.read(pickled))
    storages.load()
    for _, kind, key, _, count in storages.declared:
        if not 0 <= count * ITEM_BYTES[kind.__name__] <= sizes[f"{root}/data/{key}".lower()]:
            raise ValueError(f"tensor storage {key} would be larger than what is there")


def check_model_folder(folder: Path) -> None:
    """Check the files of a folder in Hugging Face format before transformers reads them.

    Raises OSError, the errors of `check_regular` and `check_torch_file`, and TransrecError for a file that is absurdly
    large or damaged.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() or (path.is_symlink() and not path.exists()):
            continue
        check_regular(path)
        if path.suffix == ".safetensors":
            try:
                safetensors_header(path)
            except ValueError as error:
                raise TransrecError(f"{path}: truncated or damaged ({error}); fetch it again") from error
        elif path.match("pytorch_model*.bin"):
            check_torch_file(path)
        elif path.suffix == ".json" and path.stat().st_size > TOKENIZER_BYTES:
            raise TransrecError(f"{path}: has more than {TOKENIZER_BYTES:,} bytes, which no such file has")
