"""Reads the two TSV files of a dataset line by line; errors name the line."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from transrec.errors import TransrecError, about_file
from transrec.untrusted import open_regular

# With these, RecBole's atomic files end the names of their columns.
COLUMN_TYPES = (":token", ":token_seq", ":float", ":float_seq")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Common names of columns, in the form that `plain` returns.
ITEM_NAME = re.compile(r"items?|(?:item|news|movie|article|video|product|book)?ids?|(?:parent)?asin|[in]id")
USER_NAME = re.compile(r"user|(?:user|customer|reviewer|visitor|session)?id|uid")
ITEMS_NAME = re.compile(rf"{ITEM_NAME.pattern}|(?:item|itemid)?(?:list|history|sequences?|behaviou?rs|interactions)")
TEXT_NAME = re.compile(
    r"\w*(?:titles?|names?|texts?)|abstracts?|body|summary|contents?|descriptions?|(?:sub)?categor(?:y|ies)|genres?|"
    r"brands?|authors?|keywords?|tags|url"
)
# In bytes: enough for about a million interactions of one user.
LONGEST_LINE = 2**24


def lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text without its line end) for every non-blank line of a UTF-8 file.

    Only \\n ends a line, so other Unicode line separators inside a title stay part of it.

    Raises TransrecError for a missing or unreadable file, a file with blank lines only, a line of more than
    LONGEST_LINE bytes, and bytes that are not UTF-8.
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


def check_no_header(path: Path, number: int, line: str) -> None:
    """Raise TransrecError if the first two fields of a behaviours file's first line look like a header."""
    user, items, *_ = [plain(field) for field in [*line.split("\t"), ""]]
    if USER_NAME.fullmatch(user) and ITEMS_NAME.fullmatch(items):
        raise TransrecError(
            f"{path}, line {number}: {line[:60]!r} looks like a header, and the file must have none; remove that line, "
            f"with: tail -n +{number + 1} {path.name}"
        )


def header(path: Path, number: int, line: str) -> list[str] | None:
    """Return the column names, in lower case without types, if the first line of an items file is a header, else None.

    In a header, the first field is a common name for item ids and, if other fields are not blank, at least one of them
    is a common name for texts.

    Raises TransrecError if the header names a column twice.
    """
    first, *others = line.split("\t")
    others_named = [name for name in map(plain, others) if name]
    if not ITEM_NAME.fullmatch(plain(first)) or (others_named and not any(map(TEXT_NAME.fullmatch, others_named))):
        return None
    names = [untyped(field).strip().lower() for field in (first, *others)]
    for name, count in Counter(filter(None, names)).items():
        if count > 1:
            raise TransrecError(f"{path}, line {number}: the header names column {name!r} twice; rename one of them")
    return names


def plain(name: str) -> str:
    """Return a column's name in lower case without its type, punctuation and spaces."""
    return re.sub(r"[\W_]", "", untyped(name).lower())


def untyped(name: str) -> str:
    """Return a column's name without its type: `item_id` for RecBole's `item_id:token`."""
    head, _, kind = name.strip().rpartition(":")
    return head if f":{kind}" in COLUMN_TYPES else name
