"""Measure the memory of cached IISAN over a large catalogue, with the states of two modalities on disk.

    python benchmarks/large_catalogue.py
    python benchmarks/large_catalogue.py --items 1000000 --states 7 --users 1000

Makes the states in fp16 in a temporary folder (4 GB for 13 states of 100,000 items, 21 GB for 7 states of 1,000,000),
trains on them from disk for some steps, then encodes all items from disk and ranks them for --users. The feed is
the share of a step in which states are read. The process's memory is what it allocates itself. File pages that the
system caches are counted separately, because it frees them when memory is needed. Linux only.
"""

import argparse
import re
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from iisan_cached import BLOCKS, L, recommender, sequences, state_features, train
from measured import report

from transrec.data.batches import TrainingBatches
from transrec.data.interactions import leave_one_out
from transrec.methods.iisan import IISANOptions
from transrec.options import EvaluationOptions
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator


class Memory:
    """Peak memory of this process in MiB since the object was made: own memory, and file pages."""

    def __init__(self):
        self.own = self.files = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            sizes = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
            self.own = max(self.own, int(sizes["RssAnon"]) / 1024)
            self.files = max(self.files, int(sizes["RssFile"]) / 1024)
            time.sleep(0.02)


def measure(
    folder: Path, items: int, states: int, batch_size: int, steps: int, users: int, place: str
) -> tuple[list[str], float, float]:
    """Return a row of the table, the peak of own memory in MiB, and the share of the feed."""
    split = leave_one_out(sequences(items, items), L, 5)
    features = state_features(folder, split.item_rows, items, states, place)
    model, optimizer = recommender(IISANOptions(side_layers=states - 1))
    batches = TrainingBatches(split, batch_size, negatives=False, last_only=False, seed=0)
    memory = Memory()
    started, feeding = time.perf_counter(), 0.0
    for number, (piece,) in enumerate(batches.epoch(1)):
        if number == steps:
            break
        feeding += train(model, optimizer, piece, features)
    trained = time.perf_counter()
    ranked = replace(split, evaluated_users=np.arange(min(users, split.user_count)))
    Evaluator(ranked, features, EvaluationOptions(), World(0, 1, torch.device("cpu"))).evaluate(model, "validation")
    evaluated = time.perf_counter()
    share = feeding / (trained - started)
    row = [
        place,
        f"{split.item_count:,}",
        f"{sum(part.file.states.nbytes for part in features.parts) / 2**20:,.0f}",
        f"{(trained - started) / steps:.3f}",
        f"{share:.0%}",
        f"{evaluated - trained:.0f}",
        f"{memory.own:,.0f}",
        f"{memory.files:,.0f}",
    ]
    return row, memory.own, share


def main(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as root:
        measured = [
            measure(
                given.folder or Path(root), given.items, given.states, given.batch_size, given.steps, given.users, place
            )
            for place in given.places
        ]
    head = [
        "states held in",
        "items",
        "states, MiB",
        "s per step",
        "feed",
        "s to rank",
        "process, MiB",
        "page cache, MiB",
    ]
    _, own, share = measured[0]
    report(head, [row for row, _, _ in measured], {"MiB of its own": own, "share of the feed": share})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--states", type=int, default=1 + BLOCKS, help="states per item and modality (default: all)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--users", type=int, default=12_000, help="number of users whose targets are ranked")
    parser.add_argument("--places", nargs="+", default=["disk"], choices=["disk", "cpu"])
    parser.add_argument("--folder", type=Path, help="folder in which the states are kept (default: a temporary folder)")
    main(parser.parse_args())
