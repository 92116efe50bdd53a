"""Reads Parquet files batch by batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transrec.errors import TransrecError, about_file, reason_of
from transrec.untrusted import check_regular

ROWS_AT_ONCE = 2**19


def is_parquet(path: Path) -> bool:
    """Return whether the file's name ends like that of a Parquet file."""
    return path.suffix.lower() in (".parquet", ".pq")


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open the file as a memory-mapped pyarrow.parquet.ParquetFile.

    Raises TransrecError if pyarrow is missing, or if the file is not Parquet or is damaged, even if the damage is only
    discovered inside the `with` block.
    """
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise TransrecError(f"{path}: reading Parquet needs pyarrow; pip install 'transrec[import]'") from error
    with about_file(path, what="cannot be read"):
        check_regular(path)
        try:
            with ParquetFile(path, memory_map=True) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise TransrecError(
                f"{path}: not a Parquet file, or damaged ({reason_of(error)}); write it again"
            ) from error


def text_columns(path: Path) -> dict[str, str]:
    """Return the columns that can be read as text, in order: lower-case name to actual name. Lists are omitted.

    Raises TransrecError as `open_parquet` does, and for two names that differ only in case.
    """
    names: dict[str, str] = {}
    with open_parquet(path) as file:
        schema = file.schema_arrow
    for name, kind in zip(schema.names, schema.types, strict=True):
        if names.setdefault(name.lower(), name) != name:
            raise TransrecError(f"{path}: has the columns {names[name.lower()]!r} and {name!r}; rename one of them")
        if kind.num_fields:
            del names[name.lower()]
    return names


def read_texts(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the texts of the given columns for each row, "" for null. Raises TransrecError as `open_parquet` does."""
    import pyarrow  # pyright: ignore[reportMissingImports]

    with open_parquet(path) as file:
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(dict.fromkeys(columns))):
            texts = (batch.column(name).cast(pyarrow.string()).fill_null("").to_pylist() for name in columns)
            yield from zip(*texts, strict=True)
