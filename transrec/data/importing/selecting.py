"""From the rows read to the interactions kept.

What is dropped, in this order: interactions without a user, an item or a time; outside of --since and --until; below
--min_rating; duplicates; users of more than --max_length; then, until nothing changes, users and items with too few.
Rows become numbers first, are sorted once, and pass through the later steps in batches.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from transrec.data.importing.database import Database
from transrec.data.importing.options import ImportOptions
from transrec.data.tables import import_extra
from transrec.errors import TransrecError
from transrec.progress import Bar

# White space and control characters, which no id may hold.
NO_ID = r"[\pZ\p{Cc}\x{FEFF}]+"
MICROSECONDS = 10**6
# From which size on numbers are nano-, micro- and milliseconds, which as seconds were of the year 5138 and later.
UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
UNIT_OF = {"s": 1.0, "ms": 1e3, "us": 1e6}
BATCH = 2**20
# Of --memory, for interactions that are looked at several times.
SHARE_OF_MEMORY = 0.2


def unit_of_times(database: Database, source: int, given: str) -> float:
    """How many of a source's units of time are a second; without a `given` unit by the size of the largest."""
    if given:
        return UNIT_OF[given]
    ((largest,),) = database.rows("SELECT max(abs(time)) FROM staged WHERE source = ?", [source])
    return next((factor for least, factor in UNITS if (largest or 0) >= least), 1.0)


def order_of(options: ImportOptions, timed: bool) -> str:
    """SQL of the order of a user's interactions.

    A time is followed by the position that the source gives, then by the item, so that the order of the source's rows
    decides nothing unless it is all there is, or asked for.
    """
    if not timed:
        return "row"
    return "time, position, row" if options.ties == "row" else "time, position, item, rating, part"


def number_rows(database: Database) -> dict[str, Any]:
    """Make `users` and `items`, the ids in alphabetical order with a number each, and `numbered`, the rows in numbers.

    Returns how many ids held white space, in whose place they have _ now, and what the source holds.

    Raises TransrecError for ids that no longer differ then.
    """
    changed = _number(database, "user", "SELECT user AS raw FROM staged")
    changed += _number(database, "item", "SELECT item AS raw FROM staged UNION ALL SELECT item FROM item_rows")
    database.run(
        "CREATE TABLE numbered AS SELECT u.id AS user, i.id AS item, rating::FLOAT AS rating, position, part, "
        f"floor(time / per_second * {MICROSECONDS})::BIGINT AS time, staged.rowid AS row FROM staged "
        "JOIN sources USING (source) LEFT JOIN user_ids u ON user = u.raw LEFT JOIN item_ids i ON item = i.raw",
        doing="number users and items",
    )
    database.run("DROP TABLE staged")
    ((users, items, rows),) = database.rows("SELECT count(DISTINCT user), count(DISTINCT item), count(*) FROM numbered")
    return {"ids changed": changed, "read": {"users": users, "items": items, "interactions": rows}}


def _number(database: Database, what: str, names: str) -> int:
    mended = f"trim(regexp_replace(raw, '{NO_ID}', ' ', 'g'))"
    database.run(
        f"CREATE TEMP TABLE mended AS SELECT raw, {mended} AS told, replace({mended}, ' ', '_') AS name "
        f"FROM (SELECT DISTINCT raw FROM ({names}) WHERE raw <> '')",
        doing=f"list {what}s",
    )
    same = "SELECT name, min(told), max(told) FROM mended GROUP BY name HAVING min(told) <> max(told) LIMIT 1"
    for name, one, other in database.rows(same):
        raise TransrecError(
            f"the {what} ids {one!r} and {other!r} would both become {name!r}, since an id has no spaces; rename one"
        )
    database.run(
        f"CREATE TABLE {what}s AS SELECT (row_number() OVER (ORDER BY name) - 1)::INTEGER AS id, name "
        "FROM (SELECT DISTINCT name FROM mended WHERE name <> '') ORDER BY name"
    )
    database.run(f"CREATE TABLE {what}_ids AS SELECT raw, id FROM mended JOIN {what}s USING (name)")
    ((changed,),) = database.rows("SELECT count(*) FROM mended WHERE told <> name")
    database.run("DROP TABLE mended")
    return changed


def sort_rows(database: Database, options: ImportOptions, timed: bool) -> dict[str, Any]:
    """Make `ordered`, each user's rows that count in order; returns how many rows each reason dropped.

    Raises TransrecError where none is left.
    """
    conditions = {"without a user": "user IS NULL", "without an item": "item IS NULL"}
    if timed:
        conditions["without a time"] = "time IS NULL"
    if options.since_seconds is not None:
        conditions["before --since"] = f"time < {round(options.since_seconds * MICROSECONDS)}"
    if options.until_seconds is not None:
        conditions["from --until on"] = f"time >= {round(options.until_seconds * MICROSECONDS)}"
    if options.min_rating is not None:
        conditions["without a rating"] = "rating IS NULL"
        # As exact as ratings are.
        conditions["below --min_rating"] = f"rating < {options.min_rating!r}::FLOAT"
    reasons = " ".join(f"WHEN {condition} THEN '{name}'" for name, condition in conditions.items())
    reason = f"CASE {reasons} END"
    counts = dict(database.rows(f"SELECT {reason} AS reason, count(*) FROM numbered GROUP BY reason"))
    dropped = {name: counts[name] for name in conditions if name in counts}
    if None not in counts:
        said = ", ".join(f"{count:,} {name}" for name, count in dropped.items()) or "the source has no rows"
        raise TransrecError(f"no interaction is left: {said}; change these flags, or look at the source")
    database.run(
        f"CREATE TABLE ordered AS SELECT user, item, time, rating, part FROM numbered WHERE {reason} IS NULL "
        f"ORDER BY user, {order_of(options, timed)}",
        doing="sort interactions",
    )
    database.run("DROP TABLE numbered")
    return {"dropped": dropped}


def whole_users(batches: Any) -> Iterator[Any]:
    """Arrow batches ordered by user as tables in which no user's rows are cut."""
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
    """Make `events` of `ordered` without what --duplicates drops; returns how many."""
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
                # The first of equal ones is the earliest.
                kept = np.sort(np.unique(pairs, return_index=True)[1])
            else:
                kept = np.flatnonzero(np.diff(pairs, prepend=-1))
            database.append("events", table.take(kept) if len(kept) < len(table) else table)
            dropped += len(table) - len(kept)
            bar.update(len(table))
    database.run("DROP TABLE ordered")
    return {"duplicates": dropped} if dropped else {}


def find_core(database: Database, options: ImportOptions) -> dict[str, int]:
    """Make `kept_users` and `kept_items`, the largest sets with enough interactions among themselves.

    In each round leave the users and the items with too few interactions with those that the round before kept, until
    none does: the k-core, which depends on no order. Returns the number of rounds, and of interactions kept.

    Raises TransrecError where nothing is left.
    """
    ((users,), (items,)) = database.rows("SELECT count(*) FROM users UNION ALL SELECT count(*) FROM items")
    pairs = _pairs(database, options)
    keeps_user, keeps_item = np.ones(users, bool), np.ones(items, bool)
    rounds = 0
    with Bar(desc="find users and items with enough interactions", unit="round", leave=False) as bar:
        while True:
            of_user, of_item = np.zeros(users, np.int64), np.zeros(items, np.int64)
            for user, item in pairs():
                both = keeps_user[user] & keeps_item[item]
                _count(of_user, user[both])
                _count(of_item, item[both])
            stays_user = of_user >= max(1, options.shortest)
            if options.max_length and not rounds:
                stays_user &= of_user <= options.max_length
            stays_item = of_item >= max(1, options.k_core)
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
    return {"rounds": rounds, "interactions": int(of_user.sum())}


def kept(database: Database, what: str) -> np.ndarray:
    """Which users, or items, are kept: bool, by their numbers."""
    ((count,),) = database.rows(f"SELECT count(*) FROM {what}s")
    keeps = np.zeros(count, bool)
    for batch in database.batches(f"FROM kept_{what}s", BATCH):
        keeps[batch[what].to_numpy()] = True
    return keeps


def _pairs(database: Database, options: ImportOptions) -> Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]:
    """What gives the user and the item of all events in batches, as often as it is called."""

    def read() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in database.batches("SELECT user, item FROM events", BATCH):
            yield batch["user"].to_numpy(), batch["item"].to_numpy()

    ((events,),) = database.rows("SELECT count(*) FROM events")
    if 8 * events > options.memory_bytes * SHARE_OF_MEMORY:
        return read
    held = list(read())
    return lambda: iter(held)


def _count(counts: np.ndarray, numbers: np.ndarray) -> None:
    """Add to `counts` how often each number occurs."""
    if len(numbers):
        first = int(numbers.min())
        found = np.bincount(numbers - first)
        counts[first : first + len(found)] += found
