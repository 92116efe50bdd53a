"""Reading the two TSV files of a dataset line by line, with errors that name the line."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from transrec.errors import TransrecError, about_file
from transrec.untrusted import open_regular

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Usual names of columns, as `_plain` writes them.
ITEM_NAME = re.compile(r"items?|(?:item|news|movie|article|video|product|book)?ids?|(?:parent)?asin|[in]id")
USER_NAME = re.compile(r"user|(?:user|customer|reviewer|visitor|session)?id|uid")
ITEMS_NAME = re.compile(rf"{ITEM_NAME.pattern}|(?:item|itemid)?(?:list|history|sequences?|behaviou?rs|interactions)")
TITLE_NAME = re.compile(r"(?:item)?(?:titles?|names?|texts?)|category|description|url|")
# A million interactions of one user.
LONGEST_LINE = 2**24


def lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its line end) of every non-blank line of a UTF-8 file.

    Lines end at \\n only, so that other Unicode line separators inside a title stay part of it.

    Raises TransrecError for a missing or unreadable file, one without any line, a line of more than LONGEST_LINE bytes,
    and bytes that are not UTF-8.
    """
    empty = True
    with about_file(path, what=f"cannot read the {what} file"), open_regular(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), start=1):
            if len(raw) > LONGEST_LINE:
                raise TransrecError(
                    f"{path}, line {number}: has more than {LONGEST_LINE:,} bytes; check that the file is text, "
                    f"with one line for each {what.rstrip('s')}"
                )
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


def check_no_header(path: Path, number: int, line: str, first: re.Pattern[str], second: re.Pattern[str]) -> None:
    """Raise TransrecError when a file's first line names columns: usual words in its first two fields."""
    fields = line.split("\t")
    names = [_plain(field) for field in [*fields, ""][:2]]
    if first.fullmatch(names[0]) and second.fullmatch(names[1]):
        raise TransrecError(
            f"{path}, line {number}: {line[:60]!r} looks like a header, and the file must have none; remove that line, "
            f"with: tail -n +{number + 1} {path.name}"
        )


def _plain(name: str) -> str:
    """A column's name in lower case without type (RecBole's `item_id:token`), signs and spaces."""
    return re.sub(r"[\W_]", "", name.partition(":")[0].lower())
