"""`import_dataset`: an import from beginning to end."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from transrec.cpus import usable_cpus
from transrec.data.formats import FORMATS, MAX_DEPTH, Format, Rows, column, recognise
from transrec.data.importing import card, reading, selecting, writing
from transrec.data.importing.database import Database
from transrec.data.importing.options import ImportOptions
from transrec.errors import Interrupted, TransrecError, about_file, printable
from transrec.locks import Lock
from transrec.paths import file_sha256, resolve, write_text
from transrec.registry import Choice
from transrec.untrusted import read_json

CARD = "dataset.json"
AUTO = "auto"
STAGED_COLUMNS = "source INTEGER, user VARCHAR, item VARCHAR, time DOUBLE, rating DOUBLE, position BIGINT, part VARCHAR"
# Names that a dataset's folder may hold in addition to the listed files: the card and the cache of runs.
OWN_FILES = {CARD, ".transrec"}


def import_dataset(choice: Choice, paths: Sequence[Path], options: ImportOptions, why: str = "") -> dict[str, Any]:
    """Import a dataset and return its data card, which is also written to its dataset.json.

    The new folder appears only once it is complete. An interrupted import continues where it stopped when the same
    import is started again; an import that fails on a mistake leaves nothing behind.

    Args:
        choice: the format and its options.
        paths: the source's files, or the folders that hold them.
        why: the reason for the choice of format, if it was guessed.

    Raises TransrecError if the folder may not be written or anything in the source cannot be read.
    """
    out = Path(os.path.abspath(Path(options.out).expanduser()))
    source = choice.entry([resolve(path) for path in paths], **choice.options.as_dict())
    job = Job(source, choice, options, why)
    _check_out(out, job.tables, options.overwrite)
    work = out.with_name(f".{out.name}.import")
    with about_file(out.parent, "give another folder with --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(out.with_name(f".{out.name}.import.lock"))
    except BlockingIOError:
        raise TransrecError(f"{out}: another import is writing it; wait for it to end") from None
    with closing(lock):
        try:
            written = job.run(work)
        except Interrupted as stop:
            stop.advice = "what was read so far is kept; the same command goes on from there"
            raise
        except Exception:
            shutil.rmtree(work, ignore_errors=True)
            raise
        _put_in_place(work / "made", out)
        shutil.rmtree(work, ignore_errors=True)
    return written


def guess(paths: Sequence[Path]) -> tuple[str, str]:
    """Return the format of these files and the reason. Raises TransrecError if no format fits, or several do."""
    resolved = [resolve(path) for path in paths]
    reasons = recognise(resolved, general=True) or recognise(resolved, general=True, max_depth=MAX_DEPTH)
    if len(reasons) == 1:
        return next(iter(reasons.items()))
    places = ", ".join(map(str, paths))
    if reasons:
        formats = "; ".join(f"{name}, for {why}" for name, why in reasons.items())
        raise TransrecError(f"{places}: may be of several formats: {formats}; name the one in place of auto")
    raise TransrecError(
        f"{places}: its format cannot be recognised from the names and headers of its files; name one of "
        f"{', '.join(FORMATS.names())} in place of auto, or write one (Dataset/README.md)"
    )


class Job:
    """One import: its source, and the steps that turn the source into a dataset folder."""

    def __init__(self, source: Format, choice: Choice, options: ImportOptions, why: str):
        self.source, self.choice, self.options, self.why = source, choice, options, why
        source.encoding = options.encoding
        self._interactions, self._items = source.interactions(), source.items()

    @property
    def tables(self) -> list[Path]:
        """The files that the import reads."""
        return list(dict.fromkeys(rows.table.path for rows in (*self._interactions, *self._items)))

    @property
    def has_times(self) -> bool:
        """True if interactions are ordered by time, False if by the order of the source's rows."""
        return any("time" in rows.columns for rows in self._interactions)

    def run(self, work: Path) -> dict[str, Any]:
        """Create the dataset in work/made and return its card."""
        self._check_flags()
        if (work / "signature").exists() and (work / "signature").read_text() != self._signature():
            shutil.rmtree(work)
        with about_file(work, "give another folder with --out"):
            work.mkdir(exist_ok=True)
            write_text(work / "signature", self._signature())
            shutil.rmtree(work / "made", ignore_errors=True)
            (work / "made").mkdir()
        threads = self.options.threads or usable_cpus()
        with ThreadPoolExecutor(1) as pool, closing(Database(work, self.options.memory_bytes, threads)) as database:
            hashes = pool.map(file_sha256, self.tables)
            try:
                counted = self._read(database, work)
                counted |= self._select(database)
                counted |= self._write(database, work / "made", counted)
                self.source.finish(work / "made")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            result = card.make(self, counted, dict(zip(self.tables, hashes, strict=True)), work / "made")
        write_text(work / "made" / CARD, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
        return result

    def _check_flags(self) -> None:
        if not self.has_times and (self.options.since or self.options.until):
            raise TransrecError("--since and --until: the source has no times; leave them out")
        if self.options.min_rating is not None and not any("rating" in rows.columns for rows in self._interactions):
            raise TransrecError("--min_rating: the source has no ratings; leave it out")
        if self.options.duplicates != "drop" and (why := self.source.repeats()):
            raise TransrecError(f"--duplicates {self.options.duplicates}: {why}; leave it out, to drop the repeats")

    def _signature(self) -> str:
        """Return a hash of the import's inputs. Unfinished work is continued only if its hash is the same."""
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.tables]
        plugins = [file_sha256(resolve(path)) for path in self.options.plugin]
        options = [self.choice.options.as_dict(), self.options.as_dict()]
        inputs = [self.choice.name, *options, plugins, files, STAGED_COLUMNS]
        return hashlib.sha256(json.dumps(inputs, default=str).encode()).hexdigest()

    def _read(self, database: Database, work: Path) -> dict[str, Any]:
        """Read all sources; returns the number of rows of each file, and the columns that items have."""
        database.run_step("begin", lambda: self._make_tables(database))
        rows: dict[str, int] = {}
        for number, one in enumerate(self._interactions):
            read = database.run_step(f"read {number}", lambda n=number, one=one: self._stage(database, work, n, one))
            path = str(one.table.path)
            rows[path] = rows.get(path, 0) + read["rows"]
        listed = database.run_step("read items", lambda: self._stage_items(database, work))
        return {"rows": listed["rows"] | rows, "columns": listed["columns"]}

    def _make_tables(self, database: Database) -> None:
        database.run(f"CREATE TABLE staged ({STAGED_COLUMNS})")
        database.run("CREATE TABLE sources (source INTEGER, per_second DOUBLE)")

    def _select(self, database: Database) -> dict[str, Any]:
        """Reduce the rows read to the interactions to keep; returns what was dropped, by reason."""
        numbered = database.run_step("number", lambda: selecting.number_rows(database))
        sorted_ = database.run_step("sort", lambda: selecting.sort_rows(database, self.options, self.has_times))
        twice = database.run_step("duplicates", lambda: selecting.drop_duplicates(database, self.options.duplicates))
        core = database.run_step("core", lambda: selecting.find_core(database, self.options))
        return numbered | {"dropped": sorted_["dropped"] | twice} | core

    def _stage(self, database: Database, work: Path, number: int, rows: Rows) -> dict[str, Any]:
        """Read one source of interactions; returns its number of rows."""
        source = reading.open_source(rows, work, database)
        columns = {"source": str(number)} | rows.columns
        columns |= {
            what: reading.checked_expression(what, source, database) for what in ("time", "rating") if what in columns
        }
        reading.insert(database, "staged", source, columns, f"read {printable(source.path.name)}")
        unit = rows.time_unit or ("" if "time" in columns and reading.has_numbers(source, database) else "s")
        per_second = selecting.unit_of_times(database, number, unit)
        selecting.check_times(database, number, per_second, source.path)
        database.run("INSERT INTO sources VALUES (?, ?)", [number, per_second])
        ((count,),) = database.rows("SELECT count(*) FROM staged WHERE source = ?", [number])
        return {"rows": count}

    def _stage_items(self, database: Database, work: Path) -> dict[str, Any]:
        """Read all rows of items; returns their columns, and the number of rows of each file."""
        names = list(dict.fromkeys(name for rows in self._items for name in rows.columns if name != "item"))
        database.run(f"CREATE TABLE item_rows (item VARCHAR{''.join(f', {column(name)} VARCHAR' for name in names)})")
        counts: dict[str, int] = {}
        for rows in self._items:
            ((before,),) = database.rows("SELECT count(*) FROM item_rows")
            source = reading.open_source(rows, work, database)
            reading.insert(database, "item_rows", source, rows.columns, f"read {printable(source.path.name)}")
            ((after,),) = database.rows("SELECT count(*) FROM item_rows")
            path = str(rows.table.path)
            counts[path] = max(counts.get(path, 0), after - before)
        return {"columns": names, "rows": counts}

    def _join_items(self, database: Database, columns: list[str]) -> None:
        """Create table `listed`: one row per item of the source, with the longest text of each column of its rows."""
        longest = "".join(
            f", substr(max(lpad(length({column(name)})::VARCHAR, 12, '0') || {column(name)}), 13) AS {column(name)}"
            for name in columns
        )
        database.run(
            f"CREATE OR REPLACE TABLE listed AS SELECT id{longest} FROM item_rows r JOIN item_ids n ON r.item = n.raw "
            "GROUP BY id"
        )

    def _write(self, database: Database, folder: Path, counted: dict[str, Any]) -> dict[str, Any]:
        columns = counted["columns"]
        self._join_items(database, columns)
        parts = any("part" in rows.columns for rows in self._interactions)
        written = writing.write_interactions(database, folder, parts, counted["interactions"])
        return written | {"texts": writing.write_items(database, folder, columns, self.options.keeps_untouched)}


def _check_out(out: Path, tables: Sequence[Path], overwrite: bool) -> None:
    """Raise TransrecError if the new folder would replace anything but the dataset of an earlier import."""
    if within := [path for path in tables if path.resolve().is_relative_to(out.resolve())]:
        raise TransrecError(f"--out {out}: holds {within[0].name}, which is to be read; give another folder")
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise TransrecError(f"--out {out}: exists already; give another folder, or --overwrite")
    try:
        written = read_json(out / CARD)["import"]["files"]
        others = sorted({path.name for path in out.iterdir()} - {*written} - OWN_FILES)
    except (OSError, ValueError, KeyError, TypeError):
        raise TransrecError(f"--out {out}: was not written by an import; give another folder") from None
    if others:
        raise TransrecError(f"--out {out}: holds {others[0]}, which no import wrote; move it, or give another folder")


def _put_in_place(made: Path, out: Path) -> None:
    """Rename the finished folder to its target, replacing an earlier one."""
    before = made.with_name("before")
    with about_file(out, "give another folder with --out"):
        if os.path.lexists(out):
            os.replace(out, before)
        os.replace(made, out)
