"""Selects the interactions to keep from the rows read.

Dropped are, in this order: interactions without a user, an item or a time; interactions outside --since and --until;
interactions below --min_rating; duplicates; users with more than --max_length interactions; then, repeatedly until
nothing changes, users and items with too few interactions. Ids are replaced by numbers first; rows are sorted once and
pass through the later steps in batches.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transrec.data.importing.database import Database
from transrec.data.importing.options import ImportOptions
from transrec.data.tables import import_extra
from transrec.errors import TransrecError
from transrec.progress import Bar

# White space and control characters, which ids may not contain.
NO_ID = r"[\pZ\p{Cc}\x{FEFF}]+"
MICROSECONDS = 10**6
# Numbers from these sizes on are nano-, micro- and milliseconds; as seconds they would be in the year 5138 or later.
UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
UNIT_OF = {"s": 1.0, "ms": 1e3, "us": 1e6}
# The year 10000, in seconds since 1970.
LATEST = 253402300800.0
BATCH = 2**20
# The share of --memory for holding interactions that are read several times.
SHARE_OF_MEMORY = 0.2


def unit_of_times(database: Database, source: int, given: str) -> float:
    """Return a source's time units per second: of the `given` unit, or, if it is "", inferred from the usual time."""
    if given:
        return UNIT_OF[given]
    ((usual,),) = database.rows("SELECT approx_quantile(abs(time), 0.5) FROM staged WHERE source = ?", [source])
    return next((factor for least, factor in UNITS if (usual or 0) >= least), 1.0)


def check_times(database: Database, source: int, per_second: float, path: Path) -> None:
    """Raise TransrecError, naming the value, if a source has a time after the year 9999."""
    beyond = "SELECT time FROM staged WHERE source = ? AND abs(time / ?) >= ? LIMIT 1"
    for (time,) in database.rows(beyond, [source, per_second, LATEST]):
        unit = {factor: name for name, factor in UNIT_OF.items()}.get(per_second, "ns")
        raise TransrecError(
            f"{path}: has the time {time:.15g}, which lies after the year 9999 if times are in {unit}; mend it, or "
            f"name another unit if the format has --time_unit"
        )


def order_of(options: ImportOptions, has_times: bool) -> str:
    """Return the SQL sort keys of a user's interactions.

    Equal times are ordered by the position that the source gives, then by item, so that the order of the source's rows
    has no effect unless the source has no times or --ties asks for it.
    """
    if not has_times:
        return "row"
    return "time, position, row" if options.ties == "row" else "time, position, item, rating, part"


def number_rows(database: Database) -> dict[str, Any]:
    """Create `users` and `items`, which number the ids in alphabetical order, and `numbered`, the rows with numbers.

    White space within ids is replaced by _. Returns how many ids that changed, and the source's counts as read.

    Raises TransrecError if different ids become equal by the replacement.
    """
    changed = _number_ids(database, "user", "SELECT user AS raw FROM staged")
    changed += _number_ids(database, "item", "SELECT item AS raw FROM staged UNION ALL SELECT item FROM item_rows")
    database.run(
        "CREATE TABLE numbered AS SELECT u.id AS user, i.id AS item, rating::FLOAT AS rating, position, part, "
        f"floor(time / per_second * {MICROSECONDS})::BIGINT AS time, staged.rowid AS row FROM staged "
        "JOIN sources USING (source) LEFT JOIN user_ids u ON user = u.raw LEFT JOIN item_ids i ON item = i.raw",
        label="number users and items",
    )
    database.run("DROP TABLE staged")
    ((users, items, rows),) = database.rows("SELECT count(DISTINCT user), count(DISTINCT item), count(*) FROM numbered")
    return {"ids changed": changed, "read": {"users": users, "items": items, "interactions": rows}}


def _number_ids(database: Database, what: str, names: str) -> int:
    mended = f"trim(regexp_replace(raw, '{NO_ID}', ' ', 'g'))"
    database.run(
        f"CREATE TEMP TABLE mended AS SELECT raw, {mended} AS told, replace({mended}, ' ', '_') AS name "
        f"FROM (SELECT DISTINCT raw FROM ({names}) WHERE raw <> '')",
        label=f"list {what}s",
    )
    same = "SELECT name, min(told), max(told) FROM mended GROUP BY name HAVING min(told) <> max(told) LIMIT 1"
    for name, first, second in database.rows(same):
        raise TransrecError(
            f"the {what} ids {first!r} and {second!r} would both become {name!r}, since an id has no spaces; rename one"
        )
    database.run(
        f"CREATE TABLE {what}s AS SELECT (row_number() OVER (ORDER BY name) - 1)::INTEGER AS id, name "
        "FROM (SELECT DISTINCT name FROM mended WHERE name <> '') ORDER BY name"
    )
    database.run(f"CREATE TABLE {what}_ids AS SELECT raw, id FROM mended JOIN {what}s USING (name)")
    ((changed,),) = database.rows("SELECT count(*) FROM mended WHERE told <> name")
    database.run("DROP TABLE mended")
    return changed


def sort_rows(database: Database, options: ImportOptions, has_times: bool) -> dict[str, Any]:
    """Create `ordered`, the rows to keep, by user and in each user's order; returns the dropped rows by reason.

    Raises TransrecError if no rows are left.
    """
    conditions = {"without a user": "user IS NULL", "without an item": "item IS NULL"}
    if has_times:
        conditions["without a time"] = "time IS NULL"
    if options.since_seconds is not None:
        conditions["before --since"] = f"time < {round(options.since_seconds * MICROSECONDS)}"
    if options.until_seconds is not None:
        conditions["from --until on"] = f"time >= {round(options.until_seconds * MICROSECONDS)}"
    if options.min_rating is not None:
        conditions["without a rating"] = "rating IS NULL"
        # Compare in single precision, in which ratings are stored.
        conditions["below --min_rating"] = f"rating < {options.min_rating!r}::FLOAT"
    reasons = " ".join(f"WHEN {condition} THEN '{name}'" for name, condition in conditions.items())
    reason = f"CASE {reasons} END"
    counts = dict(database.rows(f"SELECT {reason} AS reason, count(*) FROM numbered GROUP BY reason"))
    dropped = {name: counts[name] for name in conditions if name in counts}
    if None not in counts:
        summary = ", ".join(f"{count:,} {name}" for name, count in dropped.items()) or "the source has no rows"
        raise TransrecError(f"no interaction is left: {summary}; change these flags, or look at the source")
    database.run(
        f"CREATE TABLE ordered AS SELECT user, item, time, rating, part FROM numbered WHERE {reason} IS NULL "
        f"ORDER BY user, {order_of(options, has_times)}",
        label="sort interactions",
    )
    database.run("DROP TABLE numbered")
    return {"dropped": dropped}


def whole_users(batches: Any) -> Iterator[Any]:
    """Yield Arrow batches ordered by user as tables, without splitting any user's rows between two tables."""
    arrow = import_extra("pyarrow")
    held: list[Any] = []
    for batch in batches:
        table = arrow.Table.from_batches([batch])
        user = table["user"].to_numpy()
        cut = int(np.searchsorted(user, user[-1]))
        if held and (cut or held[-1]["user"][-1].as_py() != user[0]):
            yield arrow.concat_tables([*held, table.slice(0, cut)]).combine_chunks()
            held = []
        elif cut:
            yield table.slice(0, cut)
        held.append(table.slice(cut))
    if held:
        yield arrow.concat_tables(held).combine_chunks()


def drop_duplicates(database: Database, how: str) -> dict[str, int]:
    """Create `events` from `ordered` without the rows that --duplicates drops; returns their number."""
    if how == "keep":
        database.run("ALTER TABLE ordered RENAME TO events")
        return {}
    ((items,), (total,)) = database.rows("SELECT count(*) FROM items UNION ALL SELECT count(*) FROM ordered")
    database.run("CREATE TABLE events AS FROM ordered LIMIT 0")
    dropped = 0
    with Bar(total=total, desc="drop duplicates", unit="row", unit_scale=True, leave=False) as bar:
        for table in whole_users(database.batches("FROM ordered", BATCH)):
            user, item = table["user"].to_numpy(), table["item"].to_numpy()
            pairs = user.astype(np.int64) * items + item
            if how == "drop":
                # The first row of each pair is the earliest.
                indices = np.sort(np.unique(pairs, return_index=True)[1])
            else:
                indices = np.flatnonzero(np.diff(pairs, prepend=-1))
            database.append("events", table.take(indices) if len(indices) < len(table) else table)
            dropped += len(table) - len(indices)
            bar.update(len(table))
    database.run("DROP TABLE ordered")
    return {"duplicates": dropped} if dropped else {}


def find_core(database: Database, options: ImportOptions) -> dict[str, int]:
    """Create `kept_users` and `kept_items`, the largest sets with enough interactions among themselves.

    Each round drops the users and items that have too few interactions with those that the previous round kept, until
    nothing changes. The result, the k-core, does not depend on any order. Returns the number of rounds and of
    interactions kept.

    Raises TransrecError if nothing is left.
    """
    ((users,), (items,)) = database.rows("SELECT count(*) FROM users UNION ALL SELECT count(*) FROM items")
    read_pairs = _pair_reader(database, options)
    keeps_user, keeps_item = np.ones(users, bool), np.ones(items, bool)
    rounds = 0
    with Bar(desc="find users and items with enough interactions", unit="round", leave=False) as bar:
        while True:
            user_counts, item_counts = np.zeros(users, np.int64), np.zeros(items, np.int64)
            for user, item in read_pairs():
                both = keeps_user[user] & keeps_item[item]
                _add_counts(user_counts, user[both])
                _add_counts(item_counts, item[both])
            stays_user = user_counts >= max(1, options.shortest)
            if options.max_length and not rounds:
                stays_user &= user_counts <= options.max_length
            stays_item = item_counts >= max(1, options.k_core)
            bar.update()
            if (stays_user == keeps_user).all() and (stays_item == keeps_item).all():
                break
            keeps_user, keeps_item, rounds = stays_user, stays_item, rounds + 1
    if not keeps_user.any():
        raise TransrecError(
            f"no user is left of --k_core {options.k_core}, --min_length {options.min_length} and --max_length "
            f"{options.max_length}; change these flags"
        )
    arrow = import_extra("pyarrow")
    for what, keeps in (("user", keeps_user), ("item", keeps_item)):
        database.run(f"CREATE TABLE kept_{what}s ({what} INTEGER)")
        database.append(f"kept_{what}s", arrow.table({what: np.flatnonzero(keeps).astype(np.int32)}))
    return {"rounds": rounds, "interactions": int(user_counts.sum())}


def kept_mask(database: Database, what: str) -> np.ndarray:
    """Return which users or items are kept: bool, indexed by their number."""
    ((count,),) = database.rows(f"SELECT count(*) FROM {what}s")
    keeps = np.zeros(count, bool)
    for batch in database.batches(f"FROM kept_{what}s", BATCH):
        keeps[batch[what].to_numpy()] = True
    return keeps


def _pair_reader(database: Database, options: ImportOptions) -> Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """Return a function that yields the users and items of all events in batches, as often as it is called."""

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in database.batches("SELECT user, item FROM events", BATCH):
            yield batch["user"].to_numpy(), batch["item"].to_numpy()

    ((events,),) = database.rows("SELECT count(*) FROM events")
    if 8 * events > options.memory_bytes * SHARE_OF_MEMORY:
        return read
    held = list(read())
    return lambda: iter(held)


def _add_counts(counts: np.ndarray, numbers: np.ndarray) -> None:
    """Add to `counts` how often each number occurs."""
    if len(numbers):
        first = int(numbers.min())
        occurrences = np.bincount(numbers - first)
        counts[first : first + len(occurrences)] += occurrences
