"""Count the item rows that the encoder sees in a batch, with and without distinct-item batching.

    python benchmarks/distinct_items.py --dataset Dataset/Scientific

"every slot" encodes each of the B (L + 1) sequence slots, including padding, and with the bce objective one negative
per slot, as the published programs do. "real slots" leaves padding out. "distinct" is what transrec encodes.
"""

import argparse
from pathlib import Path

import numpy as np

from transrec.data.batches import TrainingBatches
from transrec.data.dataset import load_dataset
from transrec.reports.tables import markdown


def count(split, batch_size: int, negatives: bool) -> list[float]:
    rows = []
    for (batch,) in TrainingBatches(split, batch_size, negatives, last_only=False, seed=0).epoch(1):
        users, width = batch.sequences.shape
        slots = users * width * (2 if negatives else 1)
        real = int((batch.sequences > 0).sum()) + int((batch.negatives > 0).sum())
        rows.append((slots, real, len(batch.items)))
    return np.array(rows).mean(0).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--max_seq_len", type=int, default=10)
    arguments = parser.parse_args()
    split = load_dataset(arguments.dataset, arguments.max_seq_len, 5).split
    table = []
    for objective, negatives in (("bce", True), ("in_batch", False)):
        for batch_size in (32, 64):
            slots, real, distinct = count(split, batch_size, negatives)
            row = [f"{objective}, batch {batch_size}", f"{slots:.0f}", f"{real:.0f}", f"{distinct:.0f}"]
            table.append([*row, f"{slots / distinct:.2f}", f"{real / distinct:.2f}"])
    print(
        markdown(
            ["item rows per batch", "every slot", "real slots", "distinct", "every slot / distinct", "real / distinct"],
            table,
        )
    )
