"""Writing a dataset from the database: users.tsv, interactions.parquet, items.tsv, images.tsv."""

import html
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transrec.data.formats import column
from transrec.data.importing.database import Database
from transrec.data.importing.selecting import MICROSECONDS
from transrec.data.tables import import_extra
from transrec.progress import Bar

USERS, ITEMS, INTERACTIONS, IMAGES = "users.tsv", "items.tsv", "interactions.parquet", "images.tsv"
BATCH = 2**19
SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ufeff]+")
ITEM_ID, TITLE, IMAGE = "item_id", "title", "image"


def write_interactions(database: Database, folder: Path, order: str, parts: bool) -> dict[str, Any]:
    """Write users.tsv and, a row for each interaction in the same order, interactions.parquet.

    Its columns are user_id and item_id (text), time (int64, seconds since 1970 UTC), rating (float32) and, where the
    source has a split of its own, part (text); what the source does not say is null.

    Returns what is counted: users, interactions, first and last time.
    """
    arrow, parquet = import_extra("pyarrow"), import_extra("pyarrow.parquet")
    database.run(
        "CREATE TABLE chosen AS SELECT user, item, time, rating, part FROM events SEMI JOIN kept_users USING (user) "
        f"SEMI JOIN kept_items USING (item) ORDER BY user, {order}",
        doing="sort interactions",
    )
    users, interactions, first, last = database.row(
        f"SELECT count(DISTINCT user), count(*), min(time) // {MICROSECONDS}, max(time) // {MICROSECONDS} FROM chosen"
    )
    names = _names(database, "items")
    schema = arrow.schema(
        {
            "user_id": arrow.dictionary(arrow.int32(), arrow.string()),
            "item_id": arrow.string(),
            "time": arrow.int64(),
            "rating": arrow.float32(),
            **({"part": arrow.string()} if parts else {}),
        }
    )
    query = f"SELECT user, item, fdiv(time, {MICROSECONDS})::BIGINT AS time, rating, part FROM chosen ORDER BY rowid"
    with (
        open(folder / USERS, "wb") as lines,
        parquet.ParquetWriter(folder / INTERACTIONS, schema, compression="zstd", store_schema=False) as writer,
        Bar(total=interactions, desc="write interactions", unit="row", unit_scale=True, leave=False) as bar,
    ):
        for batch in _whole_users(database.batches(query, BATCH)):
            _write_batch(database, batch, names, lines, writer)
            bar.update(len(batch))
    return {"users": users, "interactions": interactions, "first": first, "last": last}


def _whole_users(batches: Any) -> Iterator[Any]:
    """The batches as tables in which no user's rows are cut."""
    arrow = import_extra("pyarrow")
    held: list[Any] = []
    for batch in batches:
        table = arrow.Table.from_batches([batch])
        user = table["user"].to_numpy()
        cut = int(np.searchsorted(user, user[-1]))
        if cut or (held and held[-1]["user"][-1].as_py() != user[0]):
            yield arrow.concat_tables([*held, table.slice(0, cut)])
            held = []
        held.append(table.slice(cut))
    if held:
        yield arrow.concat_tables(held)


def _write_batch(database: Database, batch: Any, item_names: Any, lines: Any, writer: Any) -> None:
    """Write the interactions of some users, whole and in order."""
    arrow, compute = import_extra("pyarrow"), import_extra("pyarrow.compute")
    batch = batch.combine_chunks()
    user, item = batch["user"].to_numpy(), batch["item"].to_numpy()
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    user_names = _names(database, "users", int(user[0]), int(user[-1])).take(arrow.array(user[starts] - user[0]))
    items = item_names.take(arrow.array(item))
    lists = arrow.ListArray.from_arrays(arrow.array(np.append(starts, len(user)), arrow.int32()), items)
    rows = compute.binary_join_element_wise(user_names, compute.binary_join(lists, " "), "\t")
    lines.write(b"".join(f"{row}\n".encode() for row in rows.to_pylist()))
    of_row = np.repeat(np.arange(len(starts), dtype=np.int32), np.diff(np.append(starts, len(user))))
    columns = {"user_id": arrow.DictionaryArray.from_arrays(arrow.array(of_row), user_names), "item_id": items}
    columns |= {name: batch[name] for name in writer.schema.names[2:]}
    writer.write_table(arrow.table(columns, schema=writer.schema))


def _names(database: Database, table: str, first: int = 0, last: int = 2**31) -> Any:
    """The ids of a range of users or items, by their numbers, as an Arrow array."""
    arrow = import_extra("pyarrow")
    read = database.beside(f"SELECT name FROM {table} WHERE id BETWEEN {first} AND {last} ORDER BY id")
    found = read["name"].combine_chunks()
    return found.chunk(0) if isinstance(found, arrow.ChunkedArray) else found


def write_items(database: Database, folder: Path, columns: list[str], keeps_untouched: bool) -> dict[str, Any]:
    """Write items.tsv, ordered by id, with a header, and images.tsv where addresses of images are known.

    HTML entities are unescaped, and every run of white space and control characters becomes one space.

    Args:
        columns: of the table `listed`, but for the item's id.

    Returns what is counted: items, those that users touch, those without a title, and the texts that were changed.
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
                fields = [_plain(value, counts) for value in values]
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


def _plain(text: str | None, counts: Counter[str]) -> str:
    """A text on one line, without entities."""
    if not text:
        return ""
    if "&" in text and (unescaped := html.unescape(text)) != text:
        counts["with HTML entities"] += 1
        text = unescaped
    if text.isprintable() and "  " not in text:
        return text.strip()
    counts["with line ends, tabs or runs of spaces"] += 1
    return SPACE.sub(" ", text).strip()
