"""Safely reads the pickled image records in the LMDBs of the original Adapter4Rec and IISAN programs."""

import io
from typing import Any

import numpy as np

from transrec.errors import TransrecError
from transrec.untrusted import Unpickler

RECORD_CLASS = "LMDB_Image"


class OriginalRecord:
    """Base of unpickled `LMDB_Image` objects: a bare object with the attributes `channels`, `size` and `image`."""


class _RecordUnpickler(Unpickler):
    """Creates `OriginalRecord`s with plain values and refuses every other name in the pickle.

    A pickle can set attributes of any object that it names. Each name therefore gives a new object, so that no pickle
    can affect how a later one is read.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name == RECORD_CLASS:
            return type(RECORD_CLASS, (OriginalRecord,), {})
        # What protocols 0 to 2 write for "an object of this class" and "these bytes".
        match module, name:
            case ("copyreg" | "copy_reg", "_reconstructor"):
                return lambda cls, base, state: object.__new__(cls)
            case ("builtins" | "__builtin__", "object"):
                return object
            case ("_codecs", "encode"):
                return lambda text, encoding: str.encode(text, "latin1")
        return super().find_class(module, name)


def read_original(value: bytes) -> np.ndarray:
    """Return the image in a pickled record, uint8 [H, W, 3].

    Raises TransrecError for anything but a pickled `LMDB_Image` with plain values. No code in the pickle is ever run.
    """
    try:
        record = _RecordUnpickler(io.BytesIO(value)).load()
        attributes = vars(record) if isinstance(record, OriginalRecord) else {}
    except MemoryError:
        raise
    # A forged or damaged pickle can raise any exception.
    except Exception as error:
        raise TransrecError(f"not an image record: {error}") from error
    match attributes:
        case {"channels": 3, "size": (int(height), int(width)), "image": bytes(image)} if (
            min(height, width) > 0 and len(image) == height * width * 3
        ):
            return np.frombuffer(image, np.uint8).reshape(height, width, 3)
    raise TransrecError(
        f"not an image record: no {RECORD_CLASS} with channels 3, size (height, width) and image of that many bytes"
    )
