"""Compare running a constant text backbone once, the default, with running it in every step (--cached no).

    python benchmarks/constant_towers.py --dataset Dataset/Scientific --text_encoder all-MiniLM-L6-v2

Trains `frozen` and `houlsby --insert user`, each in both ways. Seconds per epoch are those of training. The other
seconds include the evaluations on all items. In the first run with cached states they also include the pass over all
items that computes the states; the second such run reuses them.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from transrec import runner
from transrec.reports.tables import markdown

RUNS = {"frozen": ("frozen", []), "houlsby --insert user": ("houlsby", ["--insert", "user"])}
METRICS = ("HR@10", "NDCG@10")


def measured(method: str, words: list[str], output: Path) -> dict[str, Any]:
    """Run a method and return its result."""
    return runner.execute(runner.parse([*words, "--output", str(output)], method, {}))


def main(given: argparse.Namespace, folder: Path) -> None:
    rows = []
    for name, (method, more) in RUNS.items():
        results = {}
        for cached in ("no", "auto"):
            words = ["--dataset", given.dataset, "--text_encoder", given.text_encoder, "--epochs", str(given.epochs)]
            words += ["--user_fraction", str(given.user_fraction), "--title_tokens", str(given.title_tokens), *more]
            words += ["--cached", cached, "--precision", "fp32"]
            words += ["--max_seq_len", "10", "--batch_size", "64", "--lr", "1e-3", "--train_recommender", "yes"]
            words += ["--state_cache", str(folder / "states")]
            results[cached] = measured(method, words, folder / f"{method}-{cached}")
        uncached = results["no"]["seconds_per_epoch"]
        for cached, result in results.items():
            seconds = result["seconds_per_epoch"]
            others = result["wall_seconds"] - seconds * result["epochs_trained"]
            scores = [f"{result[part][metric]:.4f}" for part in ("validation", "test") for metric in METRICS]
            rows.append(
                [f"{name}, --cached {cached}", f"{seconds:.2f}", f"{uncached / seconds:.1f}", f"{others:.1f}", *scores]
            )
    scored = [f"{part} {metric}" for part in ("validation", "test") for metric in METRICS]
    print(markdown(["run", "s per epoch", "times faster", "other s", *scored], rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument("--text_encoder", required=True, help="text backbone")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run")
    parser.add_argument("--user_fraction", type=float, default=1.0, help="share of the users to train on")
    parser.add_argument("--title_tokens", type=int, default=30, help="maximum number of tokens per title")
    with tempfile.TemporaryDirectory() as temporary:
        main(parser.parse_args(), Path(temporary))
