"""Measure how the costs of a run grow with users, items, length, width and ranks, varying one of them at a time.

    python benchmarks/growth.py [--plots FOLDER] [--vary users items length width ranks]

Trains SASRec over item IDs with in_batch, for one epoch with one evaluation per size, in a process of its own, on
generated sequences of full length. With --modality text, items are titles read by a tiny BERT. An exponent of 1 means
proportional growth, 0 means none. Ranks share the threads of this machine, so more ranks are faster only if threads are
idle.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from measured import report

from transrec.cpus import usable_cpus
from transrec.data.demo import FILLERS, make_text_backbone

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train.py"
BASE = {"users": 2000, "items": 4000, "length": 20, "width": 64, "ranks": 1}
SIZES = {
    "users": [1000, 2000, 4000, 8000],
    "items": [2000, 8000, 32000],
    "length": [10, 20, 40],
    "width": [32, 64, 128],
    "ranks": [1, 2],
}
# The measured costs, in the order in which `measure` reads them.
COSTS = ("training, s", "evaluation, s", "memory, MiB")


def make_dataset(folder: Path, users: int, items: int, length: int) -> None:
    """Write a dataset of uniformly drawn sequences: `length` + 1 training interactions and two held-out targets."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    titles = rng.choice(FILLERS, (items, 6))
    lines = [f"I{number}\t{' '.join(title)}\n" for number, title in enumerate(titles)]
    (folder / "items.tsv").write_text("".join(lines), encoding="utf-8")
    drawn = rng.integers(0, items, (users, length + 3))
    lines = [f"U{user}\t{' '.join(f'I{item}' for item in row)}\n" for user, row in enumerate(drawn)]
    (folder / "users.tsv").write_text("".join(lines), encoding="utf-8")


def measure(size: dict[str, int], modality: str, folder: Path) -> dict[str, float]:
    """Return the costs of one run."""
    make_dataset(folder / "data", size["users"], size["items"], size["length"])
    flags: dict[str, Any] = {"dataset": folder / "data", "output": folder / "run", "item_tower": modality}
    flags |= {"max_seq_len": size["length"], "embedding_dim": size["width"], "nproc": size["ranks"]}
    flags |= {"objective": "in_batch", "batch_size": 128, "epochs": 1, "baselines": "popularity", "catalogue": "all"}
    if modality == "text":
        make_text_backbone(folder / "backbone")
        flags["text_encoder"] = folder / "backbone"
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(SCRIPT), *words, "--no_test"], check=True, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    (epoch,) = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    values = (result["seconds_per_epoch"], json.loads(epoch)["evaluation_seconds"], result["peak_memory_mib"])
    return dict(zip(COSTS, values, strict=True))


def plot(name: str, sizes: list[int], runs: list[dict[str, float]], file: Path) -> None:
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    for cost in COSTS[:2]:
        axes.loglog(sizes, [costs[cost] for costs in runs], marker="o", label=cost)
    axes.set_xlabel(name)
    axes.set_ylabel("seconds")
    axes.legend()
    figure.savefig(file, dpi=120)


def main(given: argparse.Namespace) -> None:
    rows, figures = [], {}
    for name in given.vary:
        sizes = [size for size in SIZES[name] if name != "ranks" or size <= usable_cpus()]
        runs = []
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(BASE | {name: size}, given.modality, Path(folder)))
            rows.append([name, f"{size:,}", *(f"{runs[-1][cost]:,.2f}" for cost in COSTS)])
        exponents = [np.polyfit(np.log(sizes), np.log([run[cost] for run in runs]), 1)[0] for cost in COSTS]
        rows.append([name, "exponent", *(f"{exponent:.2f}" for exponent in exponents)])
        figures |= {f"{name}: exponent of {cost}": e for cost, e in zip(COSTS[:2], exponents[:2], strict=True)}
        if given.plots:
            given.plots.mkdir(parents=True, exist_ok=True)
            plot(name, sizes, runs, given.plots / f"{name}.png")
    report(["what grows", "size", *COSTS], rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vary", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--modality", default="id", choices=["id", "text"])
    parser.add_argument("--plots", type=Path, help="folder for one plot per quantity that is varied")
    main(parser.parse_args())
