"""Compare ours with RecBole 1.2.1's own SASRec and GRU4Rec: the same interactions, targets, candidates and sizes.

    python scripts/import_dataset.py recbole .../site-packages/recbole/dataset_example/ml-100k --out ml-100k
    python benchmarks/recbole.py --dataset ml-100k --out recbole-runs

Needs pip install recbole==1.2.1. Leave-one-out by time, L 50, width 64, 2 blocks and 2 heads, Adam at 1e-3, 128
sequences per step, Linear(d, 4d) in feed-forward. All items are ranked except those of the user's history, which this
script makes RecBole mask as well. RecBole gets exactly the interactions that ours keeps of each user, in the same
order. For each row, the dropout is chosen from --dropouts by validation HR@10 at the first seed. Training stops after
--patience epochs without a better validation HR@10; RecBole makes an example of every prefix, so its epoch has 38 times
as many steps. Rows are run alternately, and finished runs are kept in OUT/runs.jsonl. The same command continues, in a
run of RecBole after its last epoch.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

# The folder of this file contains a module with RecBole's name.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from transrec import runner  # noqa: E402
from transrec.data.dataset import Dataset, load_dataset  # noqa: E402
from transrec.data.interactions import Split  # noqa: E402
from transrec.paths import atomic_write  # noqa: E402
from transrec.reports.tables import markdown, mean_and_spread, metric_cells  # noqa: E402

L, BATCH = 50, 128
# By row: the flags of ours, the user encoder first, or RecBole's model and loss.
OURS = {
    "ours, sasrec, softmax": ["--user_encoder", "sasrec", "--objective", "softmax"],
    "ours, sasrec, in_batch": ["--user_encoder", "sasrec", "--objective", "in_batch"],
    "ours, sasrec, bpr": ["--user_encoder", "sasrec", "--objective", "bpr"],
    "ours, gru4rec, softmax": ["--user_encoder", "gru4rec", "--objective", "softmax"],
}
THEIRS = {
    "RecBole, SASRec, CE": ("SASRec", "CE"),
    "RecBole, SASRec, BPR": ("SASRec", "BPR"),
    "RecBole, GRU4Rec, CE": ("GRU4Rec", "CE"),
}
# The row of RecBole with whose epoch each of our rows is compared.
COUNTERPART = dict(zip(OURS, [next(iter(THEIRS)), *THEIRS], strict=True))
DROPOUT = {
    "sasrec": ("dropout",),
    "gru4rec": ("gru_dropout",),
    "SASRec": ("hidden_dropout_prob", "attn_dropout_prob"),
    "GRU4Rec": ("dropout_prob",),
}


def ours(row: str, given: argparse.Namespace, dropout: float, seed: int) -> dict[str, Any]:
    """Train the model of one of our rows; return its scores, epochs and seconds."""
    words = [*OURS[row], f"--{DROPOUT[OURS[row][1]][0]}", str(dropout), "--dataset", given.dataset]
    words += ["--item_tower", "id", "--max_seq_len", str(L), "--batch_size", str(BATCH), "--lr", "1e-3"]
    words += ["--seed", str(seed), "--epochs", "400", "--patience", str(given.patience[0]), "--patience_steps", "0"]
    folder = given.out / f"{row}-{dropout}-{seed}".replace(", ", "-")
    # An interrupted run starts again: its CPU seconds are those of one process.
    shutil.rmtree(folder, ignore_errors=True)
    result = runner.execute(runner.parse([*words, "--output", str(folder)], "full", {}))
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [epoch["train_seconds"] + epoch["evaluation_seconds"] for epoch in epochs]
    scores = {part: {name: result[part][name] for name in ("HR@10", "NDCG@10")} for part in ("validation", "test")}
    return {**scores, "epochs": len(epochs), "best_epoch": result["best_epoch"], "seconds": seconds}


def write_interactions(split: Split, folder: Path) -> Path:
    """Write the kept interactions in RecBole's format, with positions as times; return the file."""
    file = folder / "kept" / "kept.inter"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(split.user_count):
        lines += [f"{user}\t{item}\t{place}" for place, item in enumerate(split.kept[user])]
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file


class Theirs:
    """One of RecBole's models with its own trainer, whose evaluation is changed to mask the history.

    Args:
        split: our split of the same interactions.
        folder: the folder of the runs, to which `write_interactions` has written the interactions.
        model: RecBole's name of the model.
        settings: settings by RecBole's names, in addition to those of all rows.
    """

    def __init__(self, split: Split, folder: Path, model: str, settings: dict[str, Any]):
        _as_numpy_was()
        from recbole.config import Config
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import get_model, get_trainer, init_seed

        sizes = {"n_layers": 2, "n_heads": 2, "hidden_size": 64 if model == "SASRec" else 128, "inner_size": 256}
        config = Config(
            model,
            "kept",
            config_dict={
                **(sizes if model == "SASRec" else {"embedding_size": 64, "hidden_size": 128, "num_layers": 1}),
                **settings,
                "data_path": str(folder),
                "checkpoint_dir": str(folder / "recbole"),
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "MAX_ITEM_LIST_LENGTH": L,
                "train_batch_size": BATCH,
                "eval_batch_size": 256,
                "learning_rate": 1e-3,
                "eval_args": {
                    "split": {"LS": "valid_and_test"},
                    "order": "TO",
                    "mode": "full",
                    "group_by": "user",
                },
                "metrics": ["Hit", "NDCG"],
                "topk": [10],
                "valid_metric": "Hit@10",
                "metric_decimal_place": 8,
                "use_gpu": False,
                "state": "ERROR",
                "show_progress": False,
            },
        )
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        self.train, validation, test = data_preparation(config, dataset)
        self.parts, self.seen = {"validation": validation, "test": test}, {}
        self.model = get_model(model)(config, self.train.dataset)
        # It makes a folder for TensorBoard in the current one.
        with chdir(folder):
            self.trainer = get_trainer(config["MODEL_TYPE"], model)(config, self.model)
        self.trainer._full_sort_batch_eval = self._masked(split, dataset, self.trainer._full_sort_batch_eval)

    def _masked(self, split: Split, dataset, evaluate):
        """Return RecBole's evaluation of a batch, changed to mask the history."""
        users, numbers = dataset.field2id_token["user_id"], dataset.field2token_id["item_id"]
        for part in self.parts:
            history = split.history(part)
            # RecBole's first user and first item are padding.
            seen = [[], *([numbers[str(item)] for item in history[int(user)]] for user in users[1:])]
            self.seen[part] = [torch.tensor(items, dtype=torch.int64) for items in seen]

        def of_batch(batch):
            interaction, _, rows, items = batch
            seen = [self.seen[self.part][user] for user in interaction["user_id"].tolist()]
            owners = torch.repeat_interleave(torch.arange(len(seen)), torch.tensor([len(own) for own in seen]))
            return evaluate((interaction, (owners, torch.cat(seen)), rows, items))

        return of_batch

    def evaluate(self, part: str) -> dict[str, float]:
        self.part = part
        scores = self.trainer.evaluate(self.parts[part], load_best_model=False)
        return {"HR@10": float(scores["hit@10"]), "NDCG@10": float(scores["ndcg@10"])}

    def fit(self, patience: int, epochs: int, file: Path) -> dict[str, Any]:
        """Train as ours does: until `patience` evaluations in a row have not improved the validation HR@10.

        After each epoch everything that training needs is saved to `file`, from which an interrupted run continues.
        """
        kept: dict[str, Any] = {"seconds": [], "cpu_seconds": 0.0, "best": {"HR@10": -1.0}, "best_epoch": 0}
        if file.exists():
            kept = torch.load(file, weights_only=True)
            self._restore(kept.pop("state"))
        while (epoch := len(kept["seconds"]) + 1) <= epochs and epoch - kept["best_epoch"] <= patience:
            started, cpu_started = time.perf_counter(), time.process_time()
            self.trainer._train_epoch(self.train, epoch)
            metrics = self.evaluate("validation")
            kept["seconds"].append(time.perf_counter() - started)
            kept["cpu_seconds"] += time.process_time() - cpu_started
            print(f"epoch {epoch:3}  {metrics}  {kept['seconds'][-1]:.1f} s", flush=True)
            if metrics["HR@10"] > kept["best"]["HR@10"]:
                kept |= {"best": metrics, "best_epoch": epoch, "weights": deepcopy(self.model.state_dict())}
            with atomic_write(file) as temporary:
                torch.save(kept | {"state": self._state()}, temporary)
        self.model.load_state_dict(kept.pop("weights"))
        scores = {"validation": kept.pop("best"), "test": self.evaluate("test")}
        return {**scores, "epochs": len(kept["seconds"]), **kept}

    def _state(self) -> dict[str, Any]:
        """Return the weights, the optimiser's state and the states of the generators that training draws from."""
        _, words, *rest = np.random.get_state()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": [torch.from_numpy(words.astype(np.int64)), *rest],
            "batches": self.train.generator.get_state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        words, *rest = state["numpy"]
        self.model.load_state_dict(state["model"])
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch"])
        np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
        self.train.generator.set_state(state["batches"])


def theirs(row: str, given: argparse.Namespace, dropout: float, seed: int) -> dict[str, Any]:
    """Train the model of one of RecBole's rows; return its scores, epochs and seconds."""
    model, loss = THEIRS[row]
    settings: dict[str, Any] = {"loss_type": loss, "seed": seed} | dict.fromkeys(DROPOUT[model], dropout)
    if loss == "CE":
        settings["train_neg_sample_args"] = None
    split = dataset_of(given).split
    write_interactions(split, given.out)
    unfinished = given.out / f"{model}-{loss}-{dropout}-{seed}-{given.patience[1]}.pt"
    return Theirs(split, given.out, model, settings).fit(given.patience[1], given.epochs, unfinished)


def dataset_of(given: argparse.Namespace) -> Dataset:
    return load_dataset(given.dataset, L, 5)


def _as_numpy_was() -> None:
    """Restore the names in numpy that RecBole 1.2.1 uses."""
    old = {"float_": np.float64, "unicode_": np.str_, "complex_": np.complex128, "float": float, "int": int}
    for name, kind in (old | {"bool": np.bool_, "object": np.object_}).items():
        if name not in vars(np):
            setattr(np, name, kind)


def patience_of(row: str, given: argparse.Namespace) -> int:
    return given.patience[0 if row in OURS else 1]


def jobs(given: argparse.Namespace, done: list[dict[str, Any]]) -> Iterator[tuple[str, float, int]]:
    """Yield the row, dropout and seed of each run, with rows alternating.

    The dropout of later seeds is chosen from the runs in `done`, to which the caller adds each run.
    """
    for dropout in given.dropouts:
        yield from ((row, dropout, given.seeds[0]) for row in given.rows)
    for seed in given.seeds[1:]:
        yield from ((row, chosen(row, done, given), seed) for row in given.rows)


def runs_of(row: str, done: list[dict[str, Any]], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the finished runs of a row with the patience of this call."""
    return [run for run in done if run["row"] == row and run["patience"] == patience_of(row, given)]


def chosen(row: str, done: list[dict[str, Any]], given: argparse.Namespace) -> float:
    """Return the dropout with which a row has the best validation HR@10 at the first seed."""
    tried = [run for run in runs_of(row, done, given) if run["seed"] == given.seeds[0]]
    return max(tried, key=lambda run: run["validation"]["HR@10"])["dropout"]


def table(given: argparse.Namespace, done: list[dict[str, Any]]) -> str:
    """Return the finished runs as a table; ratios compare the seconds of an epoch, including its evaluation."""
    rows, seconds = [], {}
    for row in given.rows:
        if tried := runs_of(row, done, given):
            dropout = chosen(row, done, given)
            runs = [run for run in tried if run["dropout"] == dropout]
            seconds[row] = statistics.median(second for run in runs for second in run["seconds"])
            spent = [run["cpu_seconds"] / run["epochs"] for run in runs]
            scores = metric_cells(*(run["test"] for run in runs))
            epochs = f"{statistics.mean(run['epochs'] for run in runs):.0f}"
            rows.append(
                [row, f"{dropout:g}", str(len(runs)), *scores, epochs, f"{seconds[row]:.2f}", mean_and_spread(spent)]
            )
    for cells in rows:
        against = seconds.get(COUNTERPART.get(cells[0]))
        cells.append(f"{against / seconds[cells[0]]:.1f}" if against else "")
    header = ["row", "dropout", "seeds", "test HR@10", "test NDCG@10", "epochs", "s per epoch", "CPU s per epoch"]
    return markdown([*header, "times faster"], rows)


def main(given: argparse.Namespace) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    log = given.out / "runs.jsonl"
    done = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    for row, dropout, seed in jobs(given, done):
        key = {"row": row, "dropout": dropout, "seed": seed, "patience": patience_of(row, given)}
        if not any(key.items() <= run.items() for run in done):
            started = time.process_time()
            result = (ours if row in OURS else theirs)(row, given, dropout, seed)
            done.append(key | {"cpu_seconds": time.process_time() - started} | result)
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
        print(table(given, done), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder of MovieLens-100k, imported")
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), required=True, help="folder for the runs")
    parser.add_argument("--rows", nargs="+", default=[*OURS, *THEIRS], choices=[*OURS, *THEIRS])
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.2, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--patience",
        nargs=2,
        type=int,
        default=[25, 10],
        help="epochs without a better validation HR@10 after which training stops, of ours and of RecBole",
    )
    parser.add_argument("--epochs", type=int, default=50, help="maximum number of epochs of RecBole")
    main(parser.parse_args())
