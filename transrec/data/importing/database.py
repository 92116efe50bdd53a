"""DuckDB in a folder of its own: bounded memory, progress, steps that are not taken twice, errors for people."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from transrec.data.tables import import_extra
from transrec.errors import MemoryShortage, TransrecError, file_error, is_memory_shortage, os_error
from transrec.progress import Bar

FILE = "work.duckdb"
SECONDS_BETWEEN_LOOKS = 0.1
# What is left of --memory is Python's, and that of what passes through it.
SHARE_OF_MEMORY = 0.7


class Database:
    """A DuckDB database in `folder`, which remembers the steps that are done and what they counted.

    Args:
        memory: bytes that the process may use.
        threads: that DuckDB uses.

    Raises TransrecError where duckdb is not installed, and for a database that cannot be opened.
    """

    def __init__(self, folder: Path, memory: int, threads: int):
        self.folder = folder
        duckdb = import_extra("duckdb")
        self.Error = duckdb.Error
        # Of the SQL, not of what is read.
        self.Fault = (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException, duckdb.InternalException)
        settings = {
            "memory_limit": f"{int(memory * SHARE_OF_MEMORY) // 2**20}MiB",
            "threads": threads,
            "temp_directory": str(folder / "spill"),
            "TimeZone": "UTC",
            # What is packed now is unpacked in a minute.
            "force_compression": "uncompressed",
            # Nothing is fetched.
            "autoinstall_known_extensions": False,
        }
        with self.telling():
            self.connection = duckdb.connect(str(folder / FILE), config=settings)
            self.connection.execute("SET enable_progress_bar = true")
            self.connection.execute("SET enable_progress_bar_print = false")
            self.connection.execute("CREATE TABLE IF NOT EXISTS steps (name VARCHAR, counts VARCHAR)")
        self._done = dict(self.rows("SELECT name, counts FROM steps"))

    def once(self, name: str, act: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        """Take a step whole or not at all, and never again in this folder; returns what it counted."""
        if name not in self._done:
            self.run("BEGIN")
            try:
                counts = json.dumps(act() or {})
                self.run("INSERT INTO steps VALUES (?, ?)", [name, counts])
                self.run("COMMIT")
            except BaseException:
                with suppress(self.Error):
                    self.connection.execute("ROLLBACK")
                raise
            self._done[name] = counts
        return json.loads(self._done[name])

    def run(self, sql: str, parameters: list[Any] | None = None, doing: str = "") -> None:
        """Execute a statement; what it is `doing` has a progress bar."""
        with self.telling():
            if not doing:
                self.connection.execute(sql, parameters)
                return
            failures: list[BaseException] = []
            # A thread whose `join` a signal interrupts looks as if it had ended.
            ended = Event()
            worker = Thread(target=self._try, args=(sql, parameters, failures, ended), daemon=True)
            form = "{desc}: {percentage:3.0f} % [{elapsed}<{remaining}]"
            with Bar(total=100, desc=doing, bar_format=form, leave=False) as bar:
                worker.start()
                try:
                    while not ended.wait(SECONDS_BETWEEN_LOOKS):
                        bar.update(max(0.0, self.connection.query_progress() - bar.n))
                except BaseException:
                    self.connection.interrupt()
                    ended.wait()
                    raise
                if not failures:
                    bar.update(100 - bar.n)
            for failure in failures:
                raise failure

    def rows(self, sql: str, parameters: list[Any] | None = None) -> list[tuple]:
        """All rows of a query."""
        with self.telling():
            return self.connection.execute(sql, parameters).fetchall()

    def look(self, sql: str) -> list[tuple]:
        """All rows of a query that a transaction which has failed is not part of."""
        with self.telling():
            return self.connection.cursor().execute(sql).fetchall()

    def batches(self, sql: str, size: int) -> Iterator[Any]:
        """A query's result in Arrow batches of so many rows, of what was there before the current step."""
        with self.telling(), closing(self.connection.cursor()) as cursor:
            yield from cursor.sql(sql).to_arrow_reader(size)

    def append(self, table: str, rows: Any) -> None:
        """Add the rows of an Arrow table to a table of the same columns."""
        self.connection.register("new_rows", rows)
        self.run(f"INSERT INTO {table} BY NAME FROM new_rows")
        self.connection.unregister("new_rows")

    def close(self) -> None:
        """Close the database; its folder stays."""
        self.connection.close()

    @contextmanager
    def telling(self):
        """Within, a lack of memory and a failing disk are told as such; other errors of DuckDB pass."""
        try:
            yield
        except TransrecError:
            raise
        except Exception as error:
            if is_memory_shortage(error):
                raise MemoryShortage("out of memory while importing; give more with --memory") from error
            if isinstance(error, self.Error) and (cause := os_error(error)):
                raise file_error(cause, self.folder, "give another folder with --out") from error
            raise

    def _try(self, sql: str, parameters: list[Any] | None, failures: list[BaseException], ended: Event) -> None:
        try:
            self.connection.execute(sql, parameters)
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()
