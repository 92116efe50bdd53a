"""The items of a dataset: ids, texts, and token ids of the texts, which are computed once and cached on disk."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transrec.data import parquet, tsv
from transrec.data.template import Template, is_template, read_template
from transrec.errors import FileError, TransrecError
from transrec.paths import atomic_write, file_sha256
from transrec.progress import Bar
from transrec.untrusted import check_regular

TOKEN_CACHE_VERSION = 1
TOKENISE_CHUNK = 4096
TITLE = "title"
# Columns of a file without a header.
COLUMNS = ["item_id", TITLE, "abstract", "body"]
COLUMNS_SHOWN = 10
MIND_COLUMNS = "id, category, subcategory, title, abstract, url, title entities, abstract entities"
# With a smaller share of distinct texts, they are categories, not titles: MIND has 18 categories for 65,238 news items.
FEW_TEXTS = 0.02


@dataclass(frozen=True)
class Catalog:
    """The items of a file, in file order. A line is `item_id<TAB>title[<TAB>abstract<TAB>body]` or as its header says.

    Image-only datasets have ids only; their texts are empty strings.

    Attributes:
        texts: [items], the text of each item: its title, or the text that `with_text` selected.
        columns: column names in lower case; without a header, the first of COLUMNS, as many as the longest line has.
        width: number of columns of most lines.
        text: where `texts` come from: the name of a column, or a template.
    """

    path: Path
    ids: list[str]
    texts: list[str]
    columns: list[str]
    width: int
    has_header: bool = False
    text: str = TITLE

    def index(self) -> dict[str, int]:
        """Return the row (from 0) of each item id."""
        return {item: row for row, item in enumerate(self.ids)}

    def with_text(self, text: str) -> "Catalog":
        """Return the same items with another text for each; this reads the file again.

        Args:
            text: the name of a column, or a template such as `{title}. {brand}`.

        Raises TransrecError if a column is missing, if the template is malformed, or if the file has changed.
        """
        if text == self.text:
            return self
        template = read_template(text) if is_template(text) else Template([text], ["", ""])
        flag = f"--text_template {text!r}" if is_template(text) else f"--text_attributes {text}"
        for column in template.columns:
            if not column or column not in self.columns:
                raise TransrecError(f"{flag}: {self.path} has no column {column!r}; {self.columns_hint}")
        places = [self.columns.index(column) for column in template.columns]
        texts = [template.fill(fields) for fields in self._fields(places)]
        if len(texts) != len(self.ids):
            raise TransrecError(f"{self.path}: was changed while it was read; give the command again")
        return replace(self, texts=texts, text=text)

    def _fields(self, places: list[int]) -> Iterator[list[str]]:
        """Yield the columns at `places` of each item."""
        if parquet.is_parquet(self.path):
            names = list(parquet.text_columns(self.path).values())
            yield from map(list, parquet.read_texts(self.path, [names[place] for place in places]))
            return
        lines = tsv.lines(self.path, "items")
        if self.has_header:
            next(lines)
        for _, line in lines:
            fields = line.split("\t", max(places) + 1)
            yield [fields[place] if place < len(fields) else "" for place in places]

    @property
    def columns_hint(self) -> str:
        """A phrase for messages that lists the columns."""
        names = [name for name in self.columns if name]
        more = f" and {len(names) - COLUMNS_SHOWN:,} more" if len(names) > COLUMNS_SHOWN else ""
        unnamed = "" if self.has_header else ", because it has no header line, such as item_id<TAB>title<TAB>brand"
        return f"its columns are {', '.join(names[:COLUMNS_SHOWN])}{more}{unnamed}"


def read_catalog(path: Path) -> Catalog:
    """Read an items file, with titles as the texts.

    Raises TransrecError for an unreadable or empty file, a line without an item id, or an item listed twice; and if
    there is a header, for a column named twice, a line with more columns than the header, or no items.
    """
    if parquet.is_parquet(path):
        return _read_parquet(path)
    first_line: dict[str, int] = {}
    texts = []
    widths: Counter[int] = Counter()
    names, title = None, COLUMNS.index(TITLE)
    for number, line in tsv.lines(path, "items"):
        if not first_line and names is None and (names := tsv.header(path, number, line)):
            title = names.index(TITLE) if TITLE in names else len(names)
            continue
        item, *fields = line.split("\t", title + 1)
        if not item or item != item.strip() or " " in item:
            raise TransrecError(
                f"{path}, line {number}: {item!r} is not an item id; expected item_id<TAB>title, the id without spaces"
            )
        if item in first_line:
            raise TransrecError(
                f"{path}, line {number}: item {item!r} stands on line {first_line[item]} already; remove one of them"
            )
        first_line[item] = number
        texts.append(fields[title - 1] if title <= len(fields) else "")
        width = 1 + line.count("\t")
        if names and width > len(names):
            raise TransrecError(
                f"{path}, line {number}: has {width} columns, and the header names {len(names)}; name all, and write "
                f"no tab into a text"
            )
        widths[width] += 1
    if not first_line:
        raise TransrecError(f"{path}: has a header and no items; it needs one line for each item")
    columns = names or COLUMNS[: max(widths)]
    return Catalog(path, list(first_line), texts, columns, widths.most_common(1)[0][0], has_header=names is not None)


def _read_parquet(path: Path) -> Catalog:
    """Read one item per row: the column `item_id`, and `title` if the file has it."""
    columns = parquet.text_columns(path)
    if COLUMNS[0] not in columns:
        raise TransrecError(f"{path}: has no column {COLUMNS[0]!r} among {', '.join(columns)}; rename the item's id")
    first_row: dict[str, int] = {}
    texts = []
    names = [columns[name] for name in (COLUMNS[0], TITLE) if name in columns]
    for number, (item, *text) in enumerate(parquet.read_texts(path, names), start=1):
        if not item or any(map(str.isspace, item)):
            raise TransrecError(f"{path}, row {number}: {item!r} is not an item id; it must be text without spaces")
        if item in first_row:
            raise TransrecError(
                f"{path}, row {number}: item {item!r} stands in row {first_row[item]} already; remove one of them"
            )
        first_row[item] = number
        texts.extend(text or [""])
    if not first_row:
        raise TransrecError(f"{path}: holds no rows; it needs one for each item")
    return Catalog(path, list(first_row), texts, list(columns), len(columns), has_header=True)


def check_texts(catalog: Catalog, is_only_text: bool = True) -> list[str]:
    """Return warnings about poor texts: items without a text, few distinct texts, columns that are not read.

    Args:
        is_only_text: whether these are the only texts that the model reads.

    Raises TransrecError for a raw news.tsv of MIND, if titles are to be read but have no column, if no item has a text,
    or, with `is_only_text`, if all items have the same text.
    """
    path, count = catalog.path, len(catalog.ids)
    if not catalog.has_header and catalog.width == MIND_COLUMNS.count(",") + 1:
        raise TransrecError(
            f"{path}: {catalog.width} columns, as in a raw news.tsv of MIND ({MIND_COLUMNS}), where "
            f"item_id<TAB>title is expected, so that categories would be read as titles; keep id and title, with: "
            f"cut -f 1,4 news.tsv > items.tsv"
        )
    if catalog.text == TITLE and catalog.has_header and TITLE not in catalog.columns:
        raise TransrecError(
            f"{path}: has no column {TITLE!r}, which the text encoder would read; {catalog.columns_hint}; choose by "
            f"--text_template or --text_attributes, or represent items by --item_tower image or id"
        )
    distinct, example = set(catalog.texts), catalog.texts[0][:60]
    empty = sum(not text.strip() for text in catalog.texts)
    noun, place = "title", f"column {TITLE!r}" if catalog.has_header else "the second column"
    remedy, claim = f"put titles into {place}", f"{place} is the title, not a category"
    if catalog.text != TITLE:
        noun = "text" if is_template(catalog.text) else catalog.text
        remedy, claim = "have other columns read", "these are texts, not categories"
    remedy += ", or represent items by --item_tower image or id"
    if empty == count:
        raise TransrecError(
            f"{path}: none of its {count:,} items has {_a(noun)}, which the text encoder would read; {remedy}"
        )
    if is_only_text and len(distinct) == 1 and count > 1:
        raise TransrecError(
            f"{path}: all {count:,} items have the same {noun}, {example!r}, so a text encoder cannot tell them apart; "
            f"{remedy}"
        )
    warnings = []
    if empty:
        warnings.append(f"{path}: {empty:,} of {count:,} items have no {noun}; the text encoder reads them all alike")
    if is_only_text and len(distinct) < FEW_TEXTS * count:
        warnings.append(
            f"{path}: only {len(distinct):,} different {noun}s for {count:,} items, as {example!r}; check that {claim}"
        )
    if is_only_text and catalog.text == TITLE and not catalog.has_header and catalog.width > 2:
        warnings.append(
            f"{path}: has {catalog.width} columns, and only the second, the title, is read; --text_attributes and "
            f"--text_template read others"
        )
    return warnings


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts: `input_ids` int32 [n, T], right-padded; `lengths` int32 [n], real tokens per text."""

    input_ids: np.ndarray
    lengths: np.ndarray


def tokenise(texts: list[str], tokenizer, length: int, progress: bool = False) -> Tokens:
    """Tokenise each text and cut it to `length` tokens, including special tokens."""
    input_ids = np.empty((len(texts), length), dtype=np.int32)
    lengths = np.empty(len(texts), dtype=np.int32)
    with Bar(total=len(texts), desc="tokenise", unit="text", disable=not progress, leave=False) as bar:
        for start in range(0, len(texts), TOKENISE_CHUNK):
            chunk = slice(start, start + TOKENISE_CHUNK)
            encoded = tokenizer(
                texts[chunk],
                max_length=length,
                padding="max_length",
                truncation=True,
                padding_side="right",
                return_tensors="np",
            )
            input_ids[chunk] = encoded["input_ids"]
            # A decoder's tokenizer may return no token for an empty text; that text counts as one padding token.
            lengths[chunk] = encoded["attention_mask"].sum(1).clip(min=1)
            bar.update(len(texts[chunk]))
    return Tokens(input_ids, lengths)


def cached_tokens(
    catalog: Catalog, tokenizer, length: int, lower_case: bool, cache_dir: Path | None = None, progress: bool = False
) -> Tokens:
    """Return the tokens of every text of the catalogue, from the disk cache if the same tokens were computed before.

    The cache file's name contains a hash of the items file's bytes, the text that is read, the tokenizer's full
    definition, `length` and `lower_case`, so a stale cache is never used. The file is in `cache_dir` if given,
    otherwise in `.transrec/` next to the items file, or in the user's cache folder if the dataset is read-only.
    """
    key = {
        "version": TOKEN_CACHE_VERSION,
        "items": file_sha256(catalog.path),
        "tokenizer": hashlib.sha256(_definition(tokenizer).encode()).hexdigest(),
        "length": length,
        "lower_case": lower_case,
    }
    # Earlier releases tokenised only titles of files without a header; omitting "text" keeps their caches valid.
    if catalog.has_header or catalog.text != TITLE:
        key["text"] = catalog.text
    header = json.dumps(key, sort_keys=True)
    name = f"tokens-{hashlib.sha256(header.encode()).hexdigest()[:16]}.safetensors"
    folders = [cache_dir] if cache_dir else [catalog.path.parent / ".transrec", user_cache_folder()]
    for folder in folders:
        tokens = _read_tokens(folder / name, header)
        if tokens is not None:
            return tokens
    texts = [text.lower() for text in catalog.texts] if lower_case else catalog.texts
    tokens = tokenise(texts, tokenizer, length, progress)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / name) as temporary:
                save_file(vars(tokens), temporary, metadata={"key": header})
            break
        except (OSError, FileError):
            if cache_dir:
                raise
    return tokens


def _definition(tokenizer) -> str:
    """Return everything that decides a tokenizer's output for a text, except its last truncation and padding."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({k: v for k, v in definition.items() if k not in ("truncation", "padding")}, sort_keys=True)


def user_cache_folder() -> Path:
    """Return the cache folder for read-only datasets: $XDG_CACHE_HOME/transrec, by default ~/.cache/transrec."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "transrec"


def _read_tokens(path: Path, header: str) -> Tokens | None:
    """Return the cached tokens at `path`; None if the file is missing, damaged, or has another key."""
    try:
        check_regular(path)
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("key") != header:
                return None
            return Tokens(file.get_tensor("input_ids"), file.get_tensor("lengths"))
    except (OSError, SafetensorError, TransrecError):
        return None
