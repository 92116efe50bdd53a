"""Reading files that anybody may have written: only regular files, and only as much as such a file can hold."""

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

NO_FILES = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}


def check_regular(path: str | Path) -> None:
    """Check that `path` is a regular file, or a link to one: reading anything else may never end.

    Raises OSError when `path` cannot be examined, TransrecError when it is no regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:
        raise TransrecError(f"{path}: not a path ({error}); check it") from error
    if not stat.S_ISREG(mode):
        kind = next((name for fits, name in NO_FILES.items() if fits(mode)), "a device")
        raise TransrecError(f"{path}: is {kind}, and only regular files are read; write what it holds to one")


def open_regular(path: str | Path) -> io.BufferedReader:
    """The regular file at `path`, opened for reading bytes. Raises OSError, and TransrecError as `check_regular`."""
    check_regular(path)
    return open(path, "rb")


def read_regular(path: str | Path, most: int) -> bytes:
    """All bytes of the regular file at `path`. Raises as `open_regular`, and TransrecError for more than `most`."""
    with open_regular(path) as file:
        # Room is made for as many bytes as are asked for.
        content = file.read(min(os.fstat(file.fileno()).st_size, most) + 1)
    if len(content) > most:
        raise TransrecError(f"{path}: has more than {most:,} bytes, which no such file has; check what it is")
    return content


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError for what is none, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises as `read_regular` and `parse_json`."""
    return parse_json(read_regular(path, JSON_BYTES))


def read_object(path: str | Path, flag: str) -> dict[str, Any]:
    """The JSON object in a file that a flag names. Raises TransrecError where it holds none."""
    with about_file(path, f"give another file with {flag}", "cannot be read"):
        try:
            content = read_json(path)
        except ValueError as error:
            raise TransrecError(f"{path}: is not JSON ({reason_of(error)}); mend it, or leave out {flag}") from error
    if not isinstance(content, dict):
        raise TransrecError(f"{path}: must hold an object with names, not {type(content).__name__}")
    return content


def safetensors_header(path: str | Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file declares, and the byte at which its tensors begin.

    Raises OSError, TransrecError as `check_regular`, and ValueError for a header that is absurdly long or no JSON.
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
    """Python's own unpickler, which looks up nothing.

    The one in C makes room for whatever number of objects a pickle announces.
    """

    # The only operation for which this one does so, too.
    dispatch: ClassVar[dict] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class _Anything:
    """Stands for every class that a pickle names: takes any arguments and does nothing."""

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
    """Collects in `declared` the storages of which torch.save's pickle says that they are beside it."""

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
    """The array of a .npy file, memory-mapped and read-only.

    Raises TransrecError for what numpy.save has not written, pickled objects, and a file that is cut off.
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
    """An array that begins at byte `start` of a file, memory-mapped. Raises TransrecError when the file is cut off."""
    whole = start + math.prod(shape) * dtype.itemsize
    if (there := path.stat().st_size) < whole:
        raise TransrecError(f"{path}: cut off, {there:,} of {whole:,} bytes are left; copy it again")
    # Nothing to map: what has no items is told by its shape.
    if 0 in shape or not shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, order="F" if is_fortran else "C")


def check_torch_file(path: Path) -> None:
    """Check that a file of torch.save holds what it declares, so that torch can allocate memory for it and read it.

    Raises OSError, and TransrecError as `check_regular`, for a file that names anything but torch's own and plain
    containers, and for one whose tensors are compressed or would be larger than what is there.
    """
    with open_regular(path) as file:
        if file.read(4) != b"PK\3\4":
            # As PyTorch wrote before 1.6: it is read from start to end, without sizes to believe.
            return
        try:
            with zipfile.ZipFile(file) as archive:
                _check_archive(archive, os.fstat(file.fileno()).st_size)
        # A pickle that was not written by pickle can raise anything.
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

    Raises OSError, and TransrecError as `check_regular` and `check_torch_file` and for what is absurdly large.
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
