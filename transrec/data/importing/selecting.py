"""From the rows read to the interactions kept: what is dropped, in this order, and how many of each.

Interactions without a user, an item or a time; outside of --since and --until; below --min_rating; duplicates; users of
more than --max_length; then users and items outside the k-core, and users of fewer than --min_length.
"""

from typing import Any

from transrec.data.importing.database import Database
from transrec.data.importing.options import ImportOptions
from transrec.errors import TransrecError

# White space and control characters, which no id may hold.
NO_ID = r"[\pZ\p{Cc}\x{FEFF}]+"
SPACES = "' ' || chr(9) || chr(13) || chr(10) || chr(160)"
MICROSECONDS = 10**6
# From which size on numbers are milliseconds, microseconds and nanoseconds: as seconds they are of the year 5138.
UNITS = ((1e17, 1e9, "nanoseconds"), (1e14, 1e6, "microseconds"), (1e11, 1e3, "milliseconds"))
UNIT_OF = {"s": 1.0, "ms": 1e3, "us": 1e6}


def clean(name: str) -> str:
    """SQL of an id without white space: that around it goes, that within it becomes _."""
    return f"replace(trim(regexp_replace({name}, '{NO_ID}', ' ', 'g')), ' ', '_')"


def unit_of_times(database: Database, source: int, given: str) -> float:
    """How many of a source's units of time are a second; without a `given` unit by the size of the largest."""
    if given:
        return UNIT_OF[given]
    (largest,) = database.row("SELECT max(abs(time)) FROM staged WHERE source = ?", [source])
    return next((factor for least, factor, _ in UNITS if (largest or 0) >= least), 1.0)


def order_of(options: ImportOptions, timed: bool) -> str:
    """SQL of the order of a user's interactions.

    A time is followed by the position that the source gives, then by the item, so that the order of the source's rows
    decides nothing unless it is all there is, or asked for.
    """
    if not timed:
        return "row"
    return "time, position, row" if options.ties == "row" else "time, position, item, rating, part"


def drop_rows(database: Database, options: ImportOptions, timed: bool) -> dict[str, int]:
    """Make `kept`, a view of the staged rows that count; returns how many each reason drops."""
    conditions = {
        "without a user": f"coalesce(trim(user, {SPACES}), '') = ''",
        "without an item": f"coalesce(trim(item, {SPACES}), '') = ''",
    }
    if timed:
        conditions["without a time"] = "time IS NULL"
    if options.since is not None:
        conditions["before --since"] = f"time < {options.since_seconds!r}"
    if options.until is not None:
        conditions["from --until on"] = f"time >= {options.until_seconds!r}"
    if options.min_rating is not None:
        conditions["without a rating"] = "rating IS NULL"
        conditions["below --min_rating"] = f"rating < {options.min_rating!r}"
    reason = " ".join(f"WHEN {condition} THEN '{name}'" for name, condition in conditions.items())
    seconds = (
        "SELECT source, staged.rowid AS row, user, item, time / per_second AS time, rating, position, part "
        "FROM staged JOIN sources USING (source)"
    )
    database.run(f"CREATE OR REPLACE VIEW judged AS SELECT *, CASE {reason} END AS reason FROM ({seconds})")
    counts = dict(database.rows("SELECT reason, count(*) FROM judged GROUP BY reason"))
    if not counts.get(None):
        raise TransrecError(f"no interaction is left: {said(counts)}; change these flags, or look at the source")
    return {name: counts[name] for name in conditions if name in counts}


def said(counts: dict[Any, int]) -> str:
    """Counts in a sentence."""
    return (
        ", ".join(f"{count:,} {name}" for name, count in counts.items() if name and count) or "the source has no rows"
    )


def count_read(database: Database) -> dict[str, int]:
    """Users, items and interactions before anything is dropped."""
    counts = "count(DISTINCT user) AS users, count(DISTINCT item) AS items, count(*) AS interactions"
    users, items, interactions = database.row(f"SELECT {counts} FROM staged")
    return {"users": users, "items": items, "interactions": interactions}


def number_ids(database: Database, what: str, names: str) -> int:
    """Make `{what}s`, of ids in alphabetical order with a number each, and `{what}_ids`, the number of each raw id.

    Args:
        names: SQL of a query whose column `raw` holds the ids.

    Returns how many ids held white space, in whose place they have _ now.

    Raises TransrecError for ids that no longer differ then.
    """
    database.run(f"CREATE TEMP TABLE raw AS SELECT DISTINCT raw FROM ({names}) WHERE trim(raw) <> ''")
    database.run(
        f"CREATE TEMP TABLE mended AS SELECT raw, CASE WHEN regexp_matches(raw, '{NO_ID}') THEN {clean('raw')} "
        "ELSE raw END AS name FROM raw"
    )
    same = database.rows(
        "SELECT name, list(raw ORDER BY raw)[1:2] FROM mended GROUP BY name "
        f"HAVING count(DISTINCT trim(regexp_replace(raw, '{NO_ID}', ' ', 'g'))) > 1 AND count(*) > 1 LIMIT 1"
    )
    for name, (one, other) in same:
        raise TransrecError(
            f"the {what} ids {one!r} and {other!r} would both become {name!r}, since an id has no spaces; rename one"
        )
    database.run(
        f"CREATE TABLE {what}s AS SELECT (row_number() OVER (ORDER BY name) - 1)::INTEGER AS id, name "
        "FROM (SELECT DISTINCT name FROM mended WHERE name <> '') ORDER BY name"
    )
    database.run(f"CREATE TABLE {what}_ids AS SELECT raw, id FROM mended JOIN {what}s USING (name)")
    (changed,) = database.row("SELECT count(*) FROM mended WHERE trim(raw) <> name")
    database.run("DROP TABLE raw")
    database.run("DROP TABLE mended")
    return changed


def number_all(database: Database) -> dict[str, int]:
    """Number users and items; returns how many ids of each were changed."""
    users = "SELECT user AS raw FROM judged WHERE reason IS NULL"
    items = "SELECT item AS raw FROM judged WHERE reason IS NULL UNION ALL SELECT item FROM item_rows"
    return {"users": number_ids(database, "user", users), "items": number_ids(database, "item", items)}


def make_events(database: Database) -> dict[str, Any]:
    """Make `events`, one row for each interaction that is judged to stay, of numbers alone; returns how many."""
    database.run(
        f"CREATE TABLE events AS SELECT u.id AS user, i.id AS item, (floor(time * {MICROSECONDS}))::BIGINT AS time, "
        "rating::FLOAT AS rating, position, part, row FROM judged j JOIN user_ids u ON j.user = u.raw "
        "JOIN item_ids i ON j.item = i.raw WHERE reason IS NULL",
        doing="number users and items",
    )
    return {"events": database.row("SELECT count(*) FROM events")[0]}


def drop_duplicates(database: Database, how: str, order: str) -> dict[str, int]:
    """Drop what --duplicates says; returns how many."""
    if how == "keep":
        return {}
    (before,) = database.row("SELECT count(*) FROM events")
    if how == "drop":
        database.run(
            "CREATE TABLE several AS SELECT user, item FROM events GROUP BY user, item HAVING count(*) > 1",
            doing="find duplicates",
        )
        first = f"QUALIFY row_number() OVER (PARTITION BY user, item ORDER BY {order}) = 1"
        database.run(
            "CREATE TABLE single AS SELECT * FROM events ANTI JOIN several USING (user, item) UNION ALL "
            f"(SELECT events.* FROM events SEMI JOIN several USING (user, item) {first})",
            doing="drop duplicates",
        )
        database.run("DROP TABLE several")
    else:
        database.run(
            "CREATE TABLE single AS SELECT * FROM events "
            f"QUALIFY item IS DISTINCT FROM lag(item) OVER (PARTITION BY user ORDER BY {order})",
            doing="drop duplicates",
        )
    database.run("DROP TABLE events")
    database.run("ALTER TABLE single RENAME TO events")
    (after,) = database.row("SELECT count(*) FROM events")
    return {"duplicates": before - after} if before > after else {}


def find_core(database: Database, options: ImportOptions) -> dict[str, int]:
    """Make `kept_users` and `kept_items`, the largest sets with enough interactions among themselves.

    Items leave for the users that left and users for the items, until neither does: the k-core, which depends on no
    order. Returns the number of rounds.

    Raises TransrecError where nothing is left.
    """
    longest = f"WHERE user IN (SELECT user FROM events GROUP BY user HAVING count(*) <= {options.max_length})"
    among = f"(SELECT user, item FROM events {longest if options.max_length else ''})"
    database.run(f"CREATE TABLE kept_items AS SELECT item FROM {among} GROUP BY item")
    users, rounds = -1, 0
    while True:
        doing = f"users and items of enough interactions, round {rounds + 1}"
        _keep(database, "user", "item", among, options.shortest, doing)
        (left,) = database.row("SELECT count(*) FROM kept_users")
        if left == users:
            break
        _keep(database, "item", "user", among, options.k_core, doing)
        users, rounds = left, rounds + 1
    if not users:
        raise TransrecError(
            f"no user is left of --k_core {options.k_core}, --min_length {options.min_length} and --max_length "
            f"{options.max_length}; change these flags"
        )
    return {"rounds": rounds}


def _keep(database: Database, what: str, other: str, among: str, least: int, doing: str) -> None:
    database.run(
        f"CREATE OR REPLACE TABLE kept_{what}s AS SELECT {what} FROM {among} SEMI JOIN kept_{other}s USING ({other}) "
        f"GROUP BY {what} HAVING count(*) >= {max(1, least)}",
        doing=doing,
    )
