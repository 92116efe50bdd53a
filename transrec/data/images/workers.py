"""Making records in several processes, with little in memory. The processes load neither torch nor a dataset."""

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import NamedTuple

from transrec.data.images.pictures import Problem, Recipe
from transrec.data.images.sources import Found, Source
from transrec.errors import TransrecError
from transrec.processes import holding_signals, serve_parent

CHUNKS_AHEAD = 4


class Outcome(NamedTuple):
    """What became of an item's image: its record and what was converted, or None and why it cannot be used."""

    item: str
    found: Found
    record: bytes | None
    remark: str


Chunk = list[tuple[str, Found]]


class Worker:
    """Makes records of a source's images."""

    def __init__(self, source: Source, recipe: Recipe):
        self.source, self.recipe = source, recipe

    def __call__(self, chunk: Chunk) -> list[Outcome]:
        return [self._outcome(item, found) for item, found in chunk]

    def _outcome(self, item: str, found: Found) -> Outcome:
        try:
            picture, remark = self.source.load(found, self.recipe.convert)
            return Outcome(item, found, self.recipe.record(picture), remark)
        except Problem as problem:
            return Outcome(item, found, None, str(problem))


def outcomes(source: Source, recipe: Recipe, chunks: Iterable[Chunk], workers: int) -> Iterator[list[Outcome]]:
    """The outcomes of each chunk in order, made in `workers` processes (1: in this one).

    At most CHUNKS_AHEAD chunks per process are being worked on or wait to be taken.

    Raises TransrecError if a process is lost.
    """
    if workers == 1:
        yield from map(Worker(source, recipe), chunks)
        return
    # Forked processes would share what this one has open.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (source, recipe))
    chunks = iter(chunks)
    waiting: deque = deque()

    def submit(count: int) -> None:
        for chunk in islice(chunks, count):
            with holding_signals():
                waiting.append(pool.submit(_work, chunk))

    try:
        submit(CHUNKS_AHEAD * workers)
        while waiting:
            yield waiting.popleft().result()
            submit(1)
    except BrokenProcessPool as error:
        raise TransrecError(
            "a worker process was lost, perhaps for lack of memory; give fewer --workers, the same command continues"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# Of this process, where it is one of the pool.
_worker: Worker


def _start(source: Source, recipe: Recipe) -> None:
    global _worker
    _worker = Worker(source, recipe)
    # The pool ends the others by SIGTERM when one is lost, and would wait for good for those that ignore it.
    serve_parent(ignored=[signal.SIGINT])


def _work(chunk: Chunk) -> list[Outcome]:
    return _worker(chunk)
