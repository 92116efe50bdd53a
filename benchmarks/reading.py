"""Measure reading a dataset of generated interactions, 15 per user with 80,000 items: seconds, peak memory and growth.

    python benchmarks/reading.py --interactions 2500000 5000000 10000000 --forms tsv parquet

Generates each size in a temporary folder, reads and splits it in a fresh process, and prints that process's seconds and
peak memory. For several sizes it also prints the exponent with which both grow (1: proportionally), and extrapolates
both linearly to 100 million interactions. Without flags: MIND's size, 630,000 users. Linux and macOS only.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measured import report

LENGTH, ITEMS, MIND = 15, 80_000, 9_450_000
USERS_AT_ONCE, FAR = 50_000, 100_000_000


def generate(folder: Path, form: str, interactions: int) -> None:
    """Write items.tsv, and users.tsv or interactions.parquet with ascending times."""
    names = np.array([f"N{number}" for number in range(ITEMS)], dtype=object)
    (folder / "items.tsv").write_text("".join(f"{name}\tthe title of item {name}\n" for name in names))
    write = write_lines if form == "tsv" else write_rows
    write(folder, names, interactions // LENGTH)


def write_lines(folder: Path, names: np.ndarray, users: int) -> None:
    rng = np.random.default_rng(0)
    with open(folder / "users.tsv", "w") as file:
        for user in range(users):
            file.write(f"U{user}\t{' '.join(names[rng.integers(0, ITEMS, LENGTH)])}\n")


def write_rows(folder: Path, names: np.ndarray, users: int) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    rng = np.random.default_rng(0)
    columns = [("user_id", pyarrow.string()), ("item_id", pyarrow.string()), ("time", pyarrow.int64())]
    schema = pyarrow.schema(columns)
    with ParquetWriter(folder / "interactions.parquet", schema, compression="zstd") as writer:
        for first in range(0, users, USERS_AT_ONCE):
            here = range(first, min(first + USERS_AT_ONCE, users))
            users_of = np.repeat(np.array([f"U{user}" for user in here], dtype=object), LENGTH)
            items = names[rng.integers(0, ITEMS, len(users_of))]
            times = np.tile(np.arange(LENGTH), len(here))
            writer.write_table(pyarrow.table([users_of, items, times], schema=schema))


def peak() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def read(folder: Path) -> None:
    import torch  # noqa: F401  every run has imported torch before it reads

    from transrec.data.dataset import load_dataset

    before, started = peak(), time.perf_counter()
    load_dataset(folder, max_seq_len=20, min_seq_len=5)
    print(json.dumps([time.perf_counter() - started, before, peak()]))


def measure(form: str, interactions: int) -> list[float]:
    """Return the seconds of reading, and the peak memory in MiB before and after it."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder), form, interactions)
        command = [sys.executable, __file__, "--read", folder]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def growth(sizes: list[int], values: np.ndarray) -> list[str]:
    """Return the exponent with which the measured values grow, and their linear extrapolation to FAR interactions."""
    exponent = np.polyfit(np.log(sizes), np.log(values), 1)[0]
    return [f"{exponent:.2f}", f"{np.polyval(np.polyfit(sizes, values, 1), FAR):,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, nargs="+", default=[MIND], help="numbers of interactions")
    parser.add_argument("--forms", nargs="+", default=["tsv"], help="file formats, tsv and/or parquet")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read)
        return
    rows, grown = [], []
    for form in options.forms:
        costs = np.array([measure(form, size) for size in options.interactions])
        for size, (seconds, before, most) in zip(options.interactions, costs, strict=True):
            rows.append([form, f"{size:,}", f"{seconds:.1f}", f"{most:,.0f}", f"{most - before:,.0f}"])
        if len(costs) > 1:
            for what, values in (("seconds", costs[:, 0]), ("MiB more than before", costs[:, 2] - costs[:, 1])):
                grown.append([form, what, *growth(options.interactions, values)])
    report(["form", "interactions", "seconds", "peak memory, MiB", "more than before, MiB"], rows)
    if grown:
        report(["form", "what", "exponent", f"at {FAR:,}"], grown, {"exponent of seconds": float(grown[0][2])})


if __name__ == "__main__":
    main()
