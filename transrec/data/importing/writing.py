"""Writes a dataset from the database: users.tsv, interactions.parquet, items.tsv and images.tsv."""

import html
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from transrec.data.formats import column
from transrec.data.importing.database import Database
from transrec.data.importing.selecting import BATCH, MICROSECONDS, kept_mask, whole_users
from transrec.data.tables import import_extra
from transrec.progress import Bar

USERS, ITEMS, INTERACTIONS, IMAGES = "users.tsv", "items.tsv", "interactions.parquet", "images.tsv"
SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ufeff]+")
ITEM_ID, TITLE, IMAGE = "item_id", "title", "image"


def write_interactions(database: Database, folder: Path, parts: bool, total: int) -> dict[str, Any]:
    """Write users.tsv, and interactions.parquet with a row per interaction in the same order.

    The columns of interactions.parquet are user_id and item_id (text), time (int64, seconds since 1970 UTC), rating
    (float32) and, if the source has its own split, part (text). Values that the source lacks are null.

    Args:
        total: number of interactions that are kept.

    Returns counts for the card: users, first and last time.
    """
    arrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    user_id = arrow.dictionary(arrow.int32(), arrow.string())
    columns = {"user_id": user_id, "item_id": arrow.string(), "time": arrow.int64(), "rating": arrow.float32()}
    schema = arrow.schema(columns | ({"part": arrow.string()} if parts else {}))
    item_names = _names(database, "items", 0, 2**31)
    keeps_user, keeps_item = kept_mask(database, "user"), kept_mask(database, "item")
    query = f"SELECT user, item, floor(time / {MICROSECONDS})::BIGINT AS time, rating, part FROM events"
    users, first, last = 0, [], []
    with (
        open(folder / USERS, "wb") as lines,
        parquet.ParquetWriter(folder / INTERACTIONS, schema, compression="zstd", store_schema=False) as writer,
        Bar(total=total, desc="write interactions", unit="row", unit_scale=True, leave=False) as bar,
    ):
        for everything in whole_users(database.batches(query, BATCH)):
            keeps = keeps_user[everything["user"].to_numpy()] & keeps_item[everything["item"].to_numpy()]
            table = everything.filter(arrow.array(keeps)).combine_chunks()
            if not len(table):
                continue
            users += _write_users(database, table, item_names, lines, writer)
            if not table["time"].null_count:
                times = table["time"].to_numpy()
                first.append(int(times.min()))
                last.append(int(times.max()))
            bar.update(len(table))
    return {"users": users, "first": min(first, default=None), "last": max(last, default=None)}


def _write_users(database: Database, table: Any, item_names: Any, lines: Any, writer: Any) -> int:
    """Write all interactions of some users, in order; returns the number of users."""
    arrow, compute = import_extra("pyarrow"), import_extra("pyarrow.compute")
    user = table["user"].to_numpy()
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    bounds = np.append(starts, len(user))
    names = _names(database, "users", int(user[0]), int(user[-1])).take(arrow.array(user[starts] - user[0]))
    items = item_names.take(table["item"].combine_chunks())
    sequences = compute.binary_join(arrow.ListArray.from_arrays(arrow.array(bounds, arrow.int32()), items), " ")
    rows = compute.binary_join_element_wise(names, sequences, "\t").to_pylist()
    lines.write("".join(f"{row}\n" for row in rows).encode())
    owners = arrow.array(np.repeat(np.arange(len(starts), dtype=np.int32), np.diff(bounds)))
    columns = {"user_id": arrow.DictionaryArray.from_arrays(owners, names), "item_id": items}
    columns |= {name: table[name] for name in writer.schema.names[2:]}
    writer.write_table(arrow.table(columns, schema=writer.schema))
    return len(starts)


def _names(database: Database, table: str, first: int, last: int) -> Any:
    """Return the ids of users or items numbered `first` to `last`, in order of number, as an Arrow array."""
    arrow = import_extra("pyarrow")
    query = f"SELECT name FROM {table} WHERE id BETWEEN {first} AND {last} ORDER BY id"
    return arrow.concat_arrays([batch["name"] for batch in database.batches(query, BATCH)])


def write_items(database: Database, folder: Path, columns: list[str], keeps_untouched: bool) -> dict[str, Any]:
    """Write items.tsv, ordered by id and with a header, and images.tsv if the source has image addresses.

    HTML entities are unescaped, and each run of white space and control characters becomes one space.

    Args:
        columns: the columns of table `listed`, except for the item's id.
        keeps_untouched: whether to write items that have no interactions.

    Returns counts for the card: items, items with interactions, items without a title, and changed texts.
    """
    texts = [name for name in columns if name != IMAGE]
    if texts and TITLE not in texts:
        texts.insert(0, TITLE)
    texts.sort(key=TITLE.__ne__)
    read = [column(name) if name in columns else f"NULL AS {column(name)}" for name in (*texts, IMAGE)]
    chosen = "" if keeps_untouched else "WHERE touched"
    query = (
        f"SELECT i.name AS {ITEM_ID}, item IS NOT NULL AS touched, {', '.join(read)} FROM items i "
        f"LEFT JOIN kept_items k ON k.item = i.id LEFT JOIN listed l ON l.id = i.id "
        f"WHERE (k.item IS NOT NULL OR l.id IS NOT NULL)"
    )
    counts: Counter[str] = Counter()
    has_images = IMAGE in columns
    with open(folder / ITEMS, "w", encoding="utf-8", newline="\n") as file:
        images = open(folder / IMAGES, "w", encoding="utf-8", newline="\n") if has_images else None
        file.write("\t".join([ITEM_ID, *texts]) + "\n")
        if images:
            images.write(f"{ITEM_ID}\turl\n")
        for batch in database.batches(f"FROM ({query}) {chosen} ORDER BY {ITEM_ID}", BATCH):
            for row in zip(*(batch[place].to_pylist() for place in range(batch.num_columns)), strict=True):
                item, touched, *values, image = row
                fields = [_one_line(value, counts) for value in values]
                file.write("\t".join([item, *fields]) + "\n")
                counts["items"] += 1
                counts["touched"] += touched
                counts["without a title"] += bool(texts) and not fields[0]
                if images and image:
                    images.write(f"{item}\t{SPACE.sub('', image)}\n")
                    counts["with an image's address"] += 1
        if images:
            images.close()
    return dict(counts)


def _one_line(text: str | None, counts: Counter[str]) -> str:
    """Return a text on one line, without HTML entities, and count the kinds of changes in `counts`."""
    if not text:
        return ""
    if "&" in text and (unescaped := html.unescape(text)) != text:
        counts["with HTML entities"] += 1
        text = unescaped
    if text.isprintable() and "  " not in text:
        return text.strip()
    counts["with line ends, tabs or runs of spaces"] += 1
    return SPACE.sub(" ", text).strip()
