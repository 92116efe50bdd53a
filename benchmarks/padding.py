"""Compare one padded batch with groups of titles by length: share of padding tokens, and seconds per step.

    python benchmarks/padding.py --flags --dataset Dataset/Scientific --text_encoder pretrained_models/MiniLM

Full fine-tuning with in_batch and L 10. Without --flags the script generates titles and a backbone, like steps.py.
"""

import argparse
import tempfile
from contextlib import ExitStack
from math import inf
from pathlib import Path

import numpy as np
from measured import report
from steps import MINILM, Steps, make_data, trainer_of

from transrec.data.demo import Domain
from transrec.data.groups import by_length
from transrec.training.trainer import Trainer


def padding(trainer: Trainer, call_overhead_tokens: float) -> tuple[float, float]:
    """Return the share of padding among the tokens of an epoch's batches, and the mean number of groups per batch."""
    features, read, used, groups = trainer.evaluator.features, 0, 0, []
    for step in range(len(trainer.batches)):
        (piece,) = trainer.batches.pieces_of(1, step)
        lengths = features.host_lengths[piece.items.numpy() - 1].astype(np.int64)
        parts = by_length(lengths, call_overhead_tokens)
        groups.append(len(parts))
        used += lengths.sum()
        read += sum(len(part) * lengths[part].max() for part in parts)
    return 1 - used / read, float(np.mean(groups))


def compare(words: list[str], folder: Path, given: argparse.Namespace) -> None:
    rows, figures = [], {}
    for size in given.batch_sizes:
        flags = [*words, "--batch_size", str(size)]
        with ExitStack() as stack:
            whole, grouped = (
                Steps(stack.enter_context(trainer_of(flags, "full", folder / f"{name}-{size}")))
                for name in ("whole", "grouped")
            )
            own = grouped.trainer.evaluator.features.call_overhead_tokens
            whole.trainer.evaluator.features.call_overhead_tokens = inf
            for _ in range(1 + given.steps):
                whole.take()
                grouped.take()
            before, after = padding(whole.trainer, inf), padding(grouped.trainer, own)
            ratio = whole.second / grouped.second
            cells = [f"{before[0]:.1%}", f"{after[0]:.1%}", f"{after[1]:.1f}", f"{whole.second:.2f}"]
            rows.append([str(size), *cells, f"{grouped.second:.2f}", f"{ratio:.2f}"])
            figures |= {f"padding, batch {size}": after[0], f"batch {size} times faster": ratio}
    header = ["users", "padding, one batch", "in groups", "groups", "s a step, one batch", "in groups", "times faster"]
    report(header, rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[32, 64], help="users in a batch")
    parser.add_argument("--steps", type=int, default=4, help="alternating steps of each, after a first one")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, help="flags that name a dataset and a backbone; must come last"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        data = arguments.flags or make_data(made, "text", MINILM, Domain("bench", 2400, 4000, longest=10, seed=1), 224)
        common = f"--item_tower text --objective in_batch --max_seq_len 10 --device {arguments.device}".split()
        compare([*data, *common, "--baselines", "popularity"], made, arguments)
