"""Item vectors that were computed elsewhere: a file of vectors and the ids of their items.

FILE.npy or FILE.safetensors holds float16 or float32 [items, D] or [items, K, D] and is memory-mapped; `ids.txt` in the
same folder names the item of each row, one id per line. FILE.parquet holds both, in the columns `id` and `features`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transrec.errors import TransrecError, about_file, reason_of
from transrec.untrusted import map_array, map_npy, open_regular, read_regular, safetensors_header

IDS = "ids.txt"
IDS_BYTES = 2**30
TENSOR_DTYPES = {"F16": np.float16, "F32": np.float32}
CHECKED_AT_ONCE = 2**24


class VectorFile:
    """A file of vectors, read without holding it in memory (except .parquet).

    Attributes:
        states: numpy float16 or float32 [items, K, D], read-only.
        ids: the item id of each row.

    Raises TransrecError, naming the file, if a file is missing, cut off, pickled, or of another shape or dtype, or if
    there are too few, too many or repeated ids.
    """

    def __init__(self, path: Path):
        self.path = path
        readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}
        if path.suffix not in readers:
            raise TransrecError(f"{path}: vectors are read from {', '.join(readers)}; save them as one of these")
        with about_file(path, "name the file with --vectors", "cannot read the vectors"):
            values, ids = readers[path.suffix](path)
        if values.ndim not in (2, 3) or 0 in values.shape:
            raise TransrecError(f"{path}: is {list(values.shape)}; it must be [items, D] or [items, K, D]")
        self.states = values if values.ndim == 3 else values[:, None]
        self.ids = _read_ids(path.with_name(IDS)) if ids is None else ids
        where = path if ids is not None else path.with_name(IDS)
        if len(self.ids) != len(values):
            raise TransrecError(f"{where}: has {len(self.ids):,} ids, and {path.name} holds {len(values):,} items")
        if len(set(self.ids)) < len(self.ids):
            twice = Counter(self.ids).most_common(1)[0][0]
            raise TransrecError(f"{where}: names item {twice!r} more than once; give each item one row")

    def pick(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of the vectors of the given rows, int [N]: [N, K, D]."""
        return self.states[rows]

    def rows_of(self, items: Sequence[str]) -> np.ndarray:
        """Return the row of each item, int [n], after checking that the item's vector is finite.

        Raises TransrecError, naming an item, if its vector is missing or not finite.
        """
        row_of = {item: row for row, item in enumerate(self.ids)}
        missing = [item for item in items if item not in row_of]
        if missing:
            raise TransrecError(
                f"{self.path}: holds no vector of {len(missing):,} of {len(items):,} items, {missing[0]!r} for one"
            )
        rows = np.array([row_of[item] for item in items], dtype=np.int64)
        step = max(1, CHECKED_AT_ONCE // math.prod(self.states.shape[1:]))
        for start in range(0, len(rows), step):
            finite = np.isfinite(self.states[rows[start : start + step]]).all(axis=(1, 2))
            if not finite.all():
                bad = items[start + int(np.argmin(finite))]
                raise TransrecError(f"{self.path}: the vector of item {bad!r} holds NaN or infinity; compute it again")
        return rows


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    values = map_npy(path)
    if values.dtype not in (np.dtype(np.float16), np.dtype(np.float32)):
        raise TransrecError(f"{path}: is of dtype {values.dtype}; save it as float16 or float32")
    return values, None


def _read_safetensors(path: Path) -> tuple[np.ndarray, None]:
    try:
        header, start = safetensors_header(path)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if len(tensors) != 1 and "features" not in tensors:
            raise TransrecError(f"{path}: holds {len(tensors)} tensors; name the one to be read features")
        tensor = tensors["features"] if "features" in tensors else next(iter(tensors.values()))
        shape = tuple(int(length) for length in tensor["shape"])
        first, last = (int(offset) for offset in tensor["data_offsets"])
        dtype = np.dtype(TENSOR_DTYPES[tensor["dtype"]]) if tensor["dtype"] in TENSOR_DTYPES else None
    except (ValueError, KeyError, TypeError) as error:
        raise TransrecError(f"{path}: not a safetensors file ({error!r}); save it again") from error
    if dtype is None:
        raise TransrecError(f"{path}: is of dtype {tensor['dtype']}; save it as float16 or float32")
    if min(shape, default=0) < 0 or first < 0 or last - first != math.prod(shape) * dtype.itemsize:
        raise TransrecError(f"{path}: its header contradicts itself (shape {list(shape)}, {last - first:,} bytes)")
    return map_array(path, dtype, start + first, shape), None


def _read_parquet(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TransrecError(
            f"{path}: reading .parquet needs pyarrow; pip install 'transrec[import]', or save a .npy"
        ) from error
    with open_regular(path) as file:
        try:
            table = pyarrow.parquet.read_table(file, columns=["id", "features"])
            column = table.column("features")
            kind = column.type
            while hasattr(kind, "value_type"):
                kind = kind.value_type
            ids = [str(item) for item in table.column("id").to_pylist()]
            rows = column.to_pylist()
        except (pyarrow.ArrowException, KeyError, ValueError) as error:
            raise TransrecError(
                f"{path}: no columns id and features can be read ({reason_of(error)}); save it again"
            ) from error
    if kind not in (pyarrow.float16(), pyarrow.float32()):
        raise TransrecError(f"{path}: features are of type {kind}; save them as float16 or float32")
    try:
        return np.array(rows, dtype=kind.to_pandas_dtype()), ids
    except (ValueError, TypeError) as error:
        raise TransrecError(f"{path}: features are not of one shape for every item; save them again") from error


def _read_ids(path: Path) -> list[str]:
    with about_file(path, "put it beside the vectors, one item id per line", "cannot read the ids"):
        content = read_regular(path, IDS_BYTES)
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise TransrecError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start:,}); save it as UTF-8"
        ) from error
