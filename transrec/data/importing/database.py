"""A DuckDB database in its own folder, with bounded memory, progress bars, resumable steps and readable errors."""

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
# The share of --memory for DuckDB. The rest is left to Python and the data that passes through it.
SHARE_OF_MEMORY = 0.7


class Database:
    """A DuckDB database in `folder` that remembers which steps are done and what they counted.

    Args:
        memory: bytes that the process may use.
        threads: number of threads that DuckDB uses.

    Raises TransrecError if duckdb is not installed or the database cannot be opened.
    """

    def __init__(self, folder: Path, memory: int, threads: int):
        self.folder = folder
        duckdb = import_extra("duckdb")
        self.Error = duckdb.Error
        # Errors in the SQL rather than in the data that is read.
        self.SqlError = (
            duckdb.BinderException,
            duckdb.ParserException,
            duckdb.CatalogException,
            duckdb.InternalException,
        )
        settings = {
            "memory_limit": f"{int(memory * SHARE_OF_MEMORY) // 2**20}MiB",
            "threads": threads,
            "temp_directory": str(folder / "spill"),
            "TimeZone": "UTC",
            # Do not compress: the data would be decompressed again within a minute.
            "force_compression": "uncompressed",
            # Never download extensions.
            "autoinstall_known_extensions": False,
        }
        with self.readable_errors():
            self.connection = duckdb.connect(str(folder / FILE), config=settings)
            self.connection.execute("SET enable_progress_bar = true")
            self.connection.execute("SET enable_progress_bar_print = false")
            self.connection.execute("CREATE TABLE IF NOT EXISTS steps (name VARCHAR, counts VARCHAR)")
        self._done = dict(self.rows("SELECT name, counts FROM steps"))

    def run_step(self, name: str, step: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        """Run a step in a transaction, unless it is recorded as done in this folder; returns what it counted."""
        if name not in self._done:
            self.run("BEGIN")
            try:
                counts = json.dumps(step() or {})
                self.run("INSERT INTO steps VALUES (?, ?)", [name, counts])
                self.run("COMMIT")
            except BaseException:
                with suppress(self.Error):
                    self.connection.execute("ROLLBACK")
                raise
            self._done[name] = counts
        return json.loads(self._done[name])

    def run(self, sql: str, parameters: list[Any] | None = None, label: str = "") -> None:
        """Execute a statement, with a progress bar labelled `label` if that is not empty."""
        with self.readable_errors():
            if not label:
                self.connection.execute(sql, parameters)
                return
            failures: list[BaseException] = []
            # An event instead of `join`: a thread whose `join` is interrupted by a signal looks as if it had ended.
            ended = Event()
            worker = Thread(target=self._run_in_thread, args=(sql, parameters, failures, ended), daemon=True)
            form = "{desc}: {percentage:3.0f} % [{elapsed}<{remaining}]"
            with Bar(total=100, desc=label, bar_format=form, leave=False) as bar:
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
        """Return all rows of a query."""
        with self.readable_errors():
            return self.connection.execute(sql, parameters).fetchall()

    def rows_outside_transaction(self, sql: str) -> list[tuple]:
        """Return all rows of a query, run outside the current transaction, which may have failed."""
        with self.readable_errors():
            return self.connection.cursor().execute(sql).fetchall()

    def batches(self, sql: str, size: int) -> Iterator[Any]:
        """Yield a query's result in Arrow batches of `size` rows, as of before the current step."""
        with self.readable_errors(), closing(self.connection.cursor()) as cursor:
            yield from cursor.sql(sql).to_arrow_reader(size)

    def append(self, table: str, rows: Any) -> None:
        """Add the rows of an Arrow table to a table of the same columns."""
        self.connection.register("new_rows", rows)
        self.run(f"INSERT INTO {table} BY NAME FROM new_rows")
        self.connection.unregister("new_rows")

    def close(self) -> None:
        """Close the database and keep its folder."""
        self.connection.close()

    @contextmanager
    def readable_errors(self):
        """Within this context, raise memory shortages and disk failures as TransrecError; let other errors pass."""
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

    def _run_in_thread(
        self, sql: str, parameters: list[Any] | None, failures: list[BaseException], ended: Event
    ) -> None:
        try:
            self.connection.execute(sql, parameters)
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()
