"""The pickled image records in the LMDBs of the original Adapter4Rec and IISAN programs, read without trusting them."""

import io
from typing import Any

import numpy as np

from transrec.errors import TransrecError
from transrec.untrusted import Unpickler

RECORD_CLASS = "LMDB_Image"


class OriginalRecord:
    """What a pickled `LMDB_Image` becomes: a bare object that takes the attributes `channels`, `size`, `image`."""


class _RecordUnpickler(Unpickler):
    """Makes `OriginalRecord`s of plain values; every other name in the pickle is refused.

    A pickle may set attributes of whatever it names, so each name gives a new object: no pickle can prepare the ground
    for the next.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name == RECORD_CLASS:
            return type(RECORD_CLASS, (OriginalRecord,), {})
        # The words of protocols 0 to 2 for "an object of this class" and "these bytes".
        match module, name:
            case ("copyreg" | "copy_reg", "_reconstructor"):
                return lambda cls, base, state: object.__new__(cls)
            case ("builtins" | "__builtin__", "object"):
                return object
            case ("_codecs", "encode"):
                return lambda text, encoding: str.encode(text, "latin1")
        return super().find_class(module, name)


def read_original(value: bytes) -> np.ndarray:
    """The image in a pickled record, uint8 [H, W, 3].

    Raises TransrecError for anything but a pickled `LMDB_Image` of plain values; nothing in it is ever run.
    """
    try:
        record = _RecordUnpickler(io.BytesIO(value)).load()
        attributes = vars(record) if isinstance(record, OriginalRecord) else {}
    except MemoryError:
        raise
    # A pickle that was not written by pickle can raise anything.
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
