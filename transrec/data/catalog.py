"""The items of a dataset: ids, texts, and the texts' tokens, computed once and kept on disk."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from transrec.data import tsv
from transrec.errors import FileError, TransrecError
from transrec.paths import atomic_write, file_sha256
from transrec.progress import Bar
from transrec.untrusted import check_regular

TOKEN_CACHE_VERSION = 1
TOKENISE_CHUNK = 4096
MIND_COLUMNS = "id, category, subcategory, title, abstract, url, title entities, abstract entities"
# Titles this seldom differ are categories, not titles: MIND has 18 for 65,238 news.
FEW_TITLES = 0.02


@dataclass(frozen=True)
class Catalog:
    """An items file: `item_id<TAB>title[<TAB>abstract<TAB>body]` a line, in file order (docs/protocol.md).

    Image-only sets carry the id alone; their titles are empty strings.

    Attributes:
        columns: of most of its lines; what stands behind the second is not kept.
    """

    path: Path
    ids: list[str]
    titles: list[str]
    columns: int = 2

    def index(self) -> dict[str, int]:
        """Row (from 0) of each item id."""
        return {item: row for row, item in enumerate(self.ids)}


def read_catalog(path: Path) -> Catalog:
    """Read an items file.

    Raises TransrecError for an unreadable or empty file, a header, a line without an item id, and an item listed twice.
    """
    first_line: dict[str, int] = {}
    titles = []
    columns: Counter[int] = Counter()
    for number, text in tsv.lines(path, "items"):
        item, _, rest = text.partition("\t")
        if not first_line:
            tsv.check_no_header(path, number, text, tsv.ITEM_NAME, tsv.TITLE_NAME)
        if not item or item != item.strip() or " " in item:
            raise TransrecError(
                f"{path}, line {number}: {item!r} is not an item id; expected item_id<TAB>title, the id without spaces"
            )
        if item in first_line:
            raise TransrecError(
                f"{path}, line {number}: item {item!r} stands on line {first_line[item]} already; remove one of them"
            )
        first_line[item] = number
        titles.append(rest.partition("\t")[0])
        columns[1 + text.count("\t")] += 1
    return Catalog(path, list(first_line), titles, columns.most_common(1)[0][0])


def check_titles(catalog: Catalog) -> list[str]:
    """Warnings of what makes titles poor texts: items without one, few that differ, columns that nothing reads.

    Raises TransrecError for a raw news.tsv of MIND, and where no item has a title or all have the same.
    """
    path, count = catalog.path, len(catalog.ids)
    if catalog.columns == MIND_COLUMNS.count(",") + 1:
        raise TransrecError(
            f"{path}: {catalog.columns} columns, as in a raw news.tsv of MIND ({MIND_COLUMNS}), where "
            f"item_id<TAB>title is expected, so that categories would be read as titles; keep id and title, with: "
            f"cut -f 1,4 news.tsv > items.tsv"
        )
    distinct = set(catalog.titles)
    without = sum(not title.strip() for title in catalog.titles)
    if without == count:
        raise TransrecError(
            f"{path}: none of its {count:,} items has a title, which the text encoder would read; put titles into the "
            f"second column, or represent items by --item_tower image or id"
        )
    if len(distinct) == 1 and count > 1:
        raise TransrecError(
            f"{path}: all {count:,} items have the same title, {catalog.titles[0][:60]!r}, so a text encoder cannot "
            f"tell them apart; put titles into the second column, or represent items by --item_tower image or id"
        )
    warnings = []
    if without:
        warnings.append(f"{path}: {without:,} of {count:,} items have no title; the text encoder reads them all alike")
    if len(distinct) < FEW_TITLES * count:
        warnings.append(
            f"{path}: only {len(distinct):,} different titles for {count:,} items, as {catalog.titles[0][:60]!r}; "
            f"check that the second column is the title, not a category"
        )
    if catalog.columns > 2:
        warnings.append(
            f"{path}: has {catalog.columns} columns, and only the second, the title, is read; to have more read, as "
            f"abstract or body, join them into the second column and raise --title_tokens"
        )
    return warnings


@dataclass(frozen=True)
class Tokens:
    """Token ids of n texts: `input_ids` int32 [n, T], right-padded; `lengths` int32 [n] real tokens of each."""

    input_ids: np.ndarray
    lengths: np.ndarray


def tokenise(texts: list[str], tokenizer, length: int, progress: bool = False) -> Tokens:
    """Cut each text to `length` word pieces, special tokens included."""
    input_ids = np.empty((len(texts), length), dtype=np.int32)
    lengths = np.empty(len(texts), dtype=np.int32)
    with Bar(total=len(texts), desc="tokenise", unit="title", disable=not progress, leave=False) as bar:
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
            # A decoder's tokenizer may make nothing at all of an empty text: it counts as one token of padding.
            lengths[chunk] = encoded["attention_mask"].sum(1).clip(min=1)
            bar.update(len(texts[chunk]))
    return Tokens(input_ids, lengths)


def cached_tokens(
    catalog: Catalog, tokenizer, length: int, lower_case: bool, cache_dir: Path | None = None, progress: bool = False
) -> Tokens:
    """Tokens of every title of the catalogue, read from disk when exactly these were made before.

    The cache's name holds a hash of the items file's bytes, the tokenizer's whole definition, `length` and
    `lower_case`, so a stale one is never found. It lies in `.transrec/` beside the items file, in `cache_dir` if
    given, or under the user's cache folder if the dataset is read-only.
    """
    key = {
        "version": TOKEN_CACHE_VERSION,
        "items": file_sha256(catalog.path),
        "tokenizer": hashlib.sha256(_definition(tokenizer).encode()).hexdigest(),
        "length": length,
        "lower_case": lower_case,
    }
    header = json.dumps(key, sort_keys=True)
    name = f"tokens-{hashlib.sha256(header.encode()).hexdigest()[:16]}.safetensors"
    folders = [cache_dir] if cache_dir else [catalog.path.parent / ".transrec", user_cache_folder()]
    for folder in folders:
        tokens = _read_tokens(folder / name, header)
        if tokens is not None:
            return tokens
    texts = [title.lower() for title in catalog.titles] if lower_case else catalog.titles
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
    """Everything that decides what a tokenizer makes of a text; not the length it last cut to."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({k: v for k, v in definition.items() if k not in ("truncation", "padding")}, sort_keys=True)


def user_cache_folder() -> Path:
    """Where caches of read-only datasets go: $XDG_CACHE_HOME/transrec, by default ~/.cache/transrec."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "transrec"


def _read_tokens(path: Path, header: str) -> Tokens | None:
    """The cache at `path`; None if there is none, it is damaged, or it was made for something else."""
    try:
        check_regular(path)
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("key") != header:
                return None
            return Tokens(file.get_tensor("input_ids"), file.get_tensor("lengths"))
    except (OSError, SafetensorError, TransrecError):
        return None
