"""Makes records in several processes with little memory. The processes load neither torch nor a dataset."""

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import NamedTuple

from transrec.data.images.pictures import Problem, Recipe
from transrec.data.images.sources import ImageEntry, Source
from transrec.errors import TransrecError
from transrec.processes import holding_signals, serve_parent

CHUNKS_AHEAD = 4


class Outcome(NamedTuple):
    """The result for an item's image: its record and what was converted, or None and why the image is unusable."""

    item: str
    entry: ImageEntry
    record: bytes | None
    remark: str


Chunk = list[tuple[str, ImageEntry]]


class Worker:
    """Makes records of a source's images."""

    def __init__(self, source: Source, recipe: Recipe):
        self.source, self.recipe = source, recipe

    def __call__(self, chunk: Chunk) -> list[Outcome]:
        return [self._outcome(item, entry) for item, entry in chunk]

    def _outcome(self, item: str, entry: ImageEntry) -> Outcome:
        try:
            picture, remark = self.source.load(entry, self.recipe.convert)
            return Outcome(item, entry, self.recipe.record(picture), remark)
        except Problem as problem:
            return Outcome(item, entry, None, str(problem))


def outcomes(source: Source, recipe: Recipe, chunks: Iterable[Chunk], workers: int) -> Iterator[list[Outcome]]:
    """Yield the outcomes of each chunk, in order, computed in `workers` processes (1: in this process).

    At most CHUNKS_AHEAD chunks per process are in progress or wait to be consumed.

    Raises TransrecError if a worker process is lost.
    """
    if workers == 1:
        yield from map(Worker(source, recipe), chunks)
        return
    # Spawn, since forked processes would share the files that this process has open.
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


# The worker of this process, if it belongs to the pool.
_worker: Worker


def _start(source: Source, recipe: Recipe) -> None:
    global _worker
    _worker = Worker(source, recipe)
    # When a process is lost, the pool ends the others by SIGTERM and would wait forever for any that ignore it.
    serve_parent(ignored=[signal.SIGINT])


def _work(chunk: Chunk) -> list[Outcome]:
    return _worker(chunk)
