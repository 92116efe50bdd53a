"""Reading a behaviours file of MIND's size: 630,000 users x 15 of 80,000 items.

    python benchmarks/reading.py

Generates the two files in a temporary folder, reads and splits them in a fresh process, and prints that process's
seconds and peak memory.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

USERS, LENGTH, ITEMS = 630_000, 15, 80_000


def generate(folder: Path) -> None:
    rng = np.random.default_rng(0)
    names = np.array([f"N{number}" for number in range(ITEMS)])
    (folder / "items.tsv").write_text("".join(f"{name}\tthe title of item {name}\n" for name in names))
    with open(folder / "users.tsv", "w") as file:
        for user in range(USERS):
            file.write(f"U{user}\t{' '.join(names[rng.integers(0, ITEMS, LENGTH)])}\n")


def read(folder: Path) -> None:
    import torch  # noqa: F401  what every run has loaded before it reads

    from transrec.data.dataset import load_dataset

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    started = time.perf_counter()
    dataset = load_dataset(folder, max_seq_len=20, min_seq_len=5)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(dataset.summary)
    print(f"{seconds:.1f} s, peak memory {after:.0f} MiB ({before:.0f} MiB of it before reading)")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        read(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder))
            subprocess.run([sys.executable, __file__, folder], check=True)
