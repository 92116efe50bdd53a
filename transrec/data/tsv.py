"""Reading the two TSV files of a dataset line by line, with errors that name the line."""

from collections.abc import Iterator
from pathlib import Path

from transrec.errors import TransrecError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its line end) of every non-blank line of a UTF-8 file.

    Lines end at \\n only, so that other Unicode line separators inside a title stay part of it.

    Raises TransrecError for a missing or unreadable file, a file without any line, and bytes that are not UTF-8.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise TransrecError(f"{path}: cannot read the {what} file ({error.strerror}); check the path") from error
    empty = True
    with file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(BYTE_ORDER_MARK)
            try:
                text = raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise TransrecError(
                    f"{path}, line {number}: byte {raw[error.start]:#04x} at column {error.start + 1} is not UTF-8; "
                    f"convert the file, for instance with iconv -f LATIN1 -t UTF-8"
                ) from error
            if text.strip():
                empty = False
                yield number, text
    if empty:
        raise TransrecError(f"{path}: the {what} file is empty; it needs one line for each {what.rstrip('s')}")
