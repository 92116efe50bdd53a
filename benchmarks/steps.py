"""Compare a training step of each method with a straightforward implementation of the papers' programs.

    python benchmarks/steps.py [--reads text] [--methods full lora] [--flags --dataset FOLDER --text_encoder FOLDER]

Without --flags the script makes a dataset: 2,400 users, 4,000 items, titles about as long as Scientific's (25 of 30
tokens on average), and images of 224 pixels if they are read. It also makes backbones with random weights, of MiniLM's
size on a CPU, of the size of BERT-base and ViT-base on a GPU. The straightforward implementation trains the same model,
but encodes every slot of every sequence and every negative, including padding, pads titles to the longest of a batch,
and uses eager attention and an optimiser that updates parameters one by one. The two are timed alternately, and must
have the same loss on a batch. METHOD:FLAGS is a method with those flags of a run, such as "houlsby:--insert
item_last2"; it is also compared with the first row of the same method.
"""

import argparse
import re
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from measured import report
from torch.utils.flop_counter import FlopCounterMode

from transrec import methods, runner
from transrec.data.batches import Batch
from transrec.data.demo import (
    FILLERS,
    Domain,
    make_domain,
    make_domain_with_store,
    make_image_backbone,
    make_text_backbone,
)
from transrec.data.groups import use_one_group
from transrec.models.towers import backbone_towers
from transrec.tracking import Trackers
from transrec.training import distributed
from transrec.training.run import Run
from transrec.training.threads import considerate
from transrec.training.trainer import Trainer

MINILM = {"hidden_size": 384, "layers": 6, "heads": 12, "inner_size": 1536}
BASE = {"hidden_size": 768, "layers": 12, "heads": 12, "inner_size": 3072}
TINY = {"hidden_size": 32, "layers": 2, "heads": 2, "inner_size": 64}
# Mean and standard deviation of title lengths in words, including the four words of the demo's titles. A title has two
# tokens more than words, and is cut to 30 tokens.
TITLE_WORDS, SPREAD = 26, 8


def make_data(folder: Path, reads: str, sizes: dict[str, int], domain: Domain, pixels: int) -> list[str]:
    """Write a dataset and backbones with random weights; return the flags of runs on them."""
    dataset = folder / "dataset"
    if reads == "text":
        make_domain(dataset, domain)
    else:
        make_domain_with_store(dataset, domain, pixels)
    rng = np.random.default_rng(0)
    items = (dataset / "items.tsv").read_text(encoding="utf-8").splitlines()
    more = rng.normal(TITLE_WORDS - 4, SPREAD, len(items)).round().clip(0).astype(int)
    longer = [" ".join([line, *rng.choice(FILLERS, words)]) for line, words in zip(items, more, strict=True)]
    (dataset / "items.tsv").write_text("\n".join([*longer, ""]), encoding="utf-8")
    make_text_backbone(folder / "text", **sizes)
    make_image_backbone(folder / "image", **sizes, image_size=pixels, patch_size=16 if pixels == 224 else 8)
    return ["--dataset", str(dataset), *(["--text_encoder", str(folder / "text")] if reads != "image" else [])] + (
        ["--image_encoder", str(folder / "image")] if reads != "text" else []
    )


@contextmanager
def trainer_of(words: list[str], method: str, folder: Path) -> Iterator[Trainer]:
    """Yield the trainer of a run, ready to take its first step."""
    settings = runner.parse([*words, "--output", str(folder)], method, {})
    world = distributed.start(settings.run.device, settings.run.deterministic, settings.run.timeout)
    with closing(Run(folder, True, resume=False)) as run, Trackers(run.folder) as trackers:
        trainer, _ = runner._prepare(settings, run, world, trackers)
        trainer.model.train()
        with considerate():
            yield trainer


def every_slot(batch: Batch) -> Batch:
    """Return the batch with a separate item for each slot of its sequences and each negative, including padding."""
    codes = torch.cat([batch.sequences.flatten(), batch.negatives.flatten()])
    # Padding is encoded as an arbitrary item, which costs as much as a real one.
    slots = batch.items[(codes - 1).clamp(min=0)]
    places = torch.where(codes > 0, torch.arange(1, len(codes) + 1), 0)
    sequences, negatives = places.split([batch.sequences.numel(), batch.negatives.numel()])
    return replace(
        batch,
        items=slots,
        sequences=sequences.view_as(batch.sequences),
        negatives=negatives.view_as(batch.negatives),
        log_popularity=batch.log_popularity[(codes - 1).clamp(min=0)],
        log_chance=batch.log_chance[(codes - 1).clamp(min=0)],
    )


class Steps:
    """Takes and times steps of a trainer, one after the other.

    Args:
        change: function applied to each batch before the step.
    """

    def __init__(self, trainer: Trainer, change: Callable[[Batch], Batch] = lambda batch: batch):
        self.trainer, self.change = trainer, change
        self.batches = cycle(range(len(trainer.batches)))
        self.seconds, self.items = [], []
        self.flops = 0

    def take(self) -> None:
        trainer, features = self.trainer, self.trainer.evaluator.features
        pieces = [self.change(piece) for piece in trainer.batches.pieces_of(1, next(self.batches))]
        self._wait()
        started = time.perf_counter()
        trainer._step(pieces, [features.read(piece.items) for piece in pieces]).item()
        self._wait()
        self.seconds.append(time.perf_counter() - started)
        self.items.append(sum(len(piece.items) for piece in pieces))

    def count(self) -> None:
        """Count the floating-point operations of one step."""
        with FlopCounterMode(display=False) as counter:
            self.take()
        self.flops = counter.get_total_flops()
        self.seconds.pop()

    def _wait(self) -> None:
        if self.trainer.world.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def second(self) -> float:
        """Median seconds per step, without the first step, which also loads kernels."""
        return statistics.median(self.seconds[1:])


def plain_steps(trainer: Trainer) -> Steps:
    """Return steps that train the same model in the way of typical research code."""
    for tower in backbone_towers(trainer.recommender.item_encoder.towers):
        tower.backbone.set_attn_implementation("eager")
        tower.read_all_tokens()
    use_one_group(trainer.evaluator.features)
    groups = [group | {"foreach": False, "fused": False} for group in trainer.optimizer.param_groups]
    trainer.optimizer = torch.optim.Adam(groups)
    return Steps(trainer, every_slot)


@torch.no_grad()
def check_losses(ours: Trainer, plain: Trainer) -> None:
    """Check that both have the same loss on a batch, without dropout.

    This does not hold for in_batch, whose masks rely on distinct items.
    """
    (piece,) = ours.batches.pieces_of(1, 0)
    losses = []
    for trainer, batch in ((ours, piece), (plain, every_slot(piece))):
        trainer.recommender.eval()
        losses.append(trainer.recommender(batch.to(trainer.world.device, trainer.evaluator.features)) / 1.0)
        trainer.recommender.train()
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=precision) for _ in range(2))
    best = np.inf
    for _ in range(5):
        started = time.perf_counter()
        # Reading an element waits for the product.
        (left @ right)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _seconds_and_items(both: list[Steps]) -> list[tuple[list[float], str]]:
    """Return the seconds and the items per step, each with its number format."""
    return [([steps.second for steps in both], ".3f"), ([statistics.mean(steps.items) for steps in both], ",.0f")]


def main(given: argparse.Namespace, folder: Path) -> None:
    on_gpu = given.device == "cuda"
    sizes = TINY if given.tiny else BASE if on_gpu else MINILM
    domain = Domain("bench", users=200, items=300, longest=10, seed=1) if given.tiny else None
    domain = domain or Domain("bench", users=2400, items=4000, longest=10, seed=1)
    pixels = 32 if given.tiny else 224
    words = given.flags or make_data(folder, given.reads, sizes, domain, pixels)
    words += ["--item_tower", given.reads, "--batch_size", str(given.batch_size), "--max_seq_len", str(given.length)]
    words += ["--train_recommender", "yes", "--device", given.device, "--lr", "1e-3"]
    words += ["--objective", given.objective, "--baselines", "popularity", "--state_cache", str(folder / "states")]
    rows, figures, first = [], {}, {}
    peak = peak_flops(torch.device(given.device), torch.bfloat16 if on_gpu else torch.float32)
    for name in given.methods:
        method, _, flags = name.partition(":")
        inserts = ["--insert", "item"] if "insert" in methods.get(method).Options.defaults() else []
        common = [*words, *inserts]
        with ExitStack() as stack:
            ours = stack.enter_context(trainer_of([*common, *shlex.split(flags)], method, folder / f"ours-{len(rows)}"))
            both = [Steps(ours)]
            if not given.only_ours:
                words_of_plain = [*common, "--cached", "no"]
                plain = stack.enter_context(trainer_of(words_of_plain, method, folder / f"plain-{len(rows)}"))
                if given.objective != "in_batch":
                    check_losses(ours, plain)
                both.append(plain_steps(plain))
            for turn in range(1 + given.turns):
                for steps in both:
                    # First one step each, which is not counted, then several of ours for each straightforward step.
                    for _ in range(given.steps if turn and steps is both[0] else 1):
                        steps.take()
            both[0].count()
            first.setdefault(method, both[0].second)
            share = both[0].flops / both[0].second / peak
            feed = ours.clock.seconds["feed"] / sum(ours.clock.seconds.values())
            seconds, items = ([f"{value:{form}}" for value in values] for values, form in _seconds_and_items(both))
            ratio, than_first = both[-1].second / both[0].second, first[method] / both[0].second
            ratios = [f"{ratio:.1f}" if len(both) > 1 else "", f"{than_first:.1f}"]
            missing = [""] * (2 - len(both))
            rows.append([name, *seconds, *missing, *ratios, *items, *missing, f"{share:.0%}", f"{feed:.1%}"])
            label = " ".join(re.findall(r"\w+", name.replace("--", "")))
            if len(both) > 1:
                figures[f"{label} times faster"] = ratio
            if than_first != 1:
                figures[f"{label} times faster than its first"] = than_first
    header = ["method", "ours, s", "straightforward, s", "times faster", "than its first", "items", "straightforward"]
    report([*header, "of a matrix product's rate", "feed"], rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reads", default="text", choices=["text", "image", "multimodal"])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], metavar="METHOD[:FLAGS]")
    parser.add_argument("--objective", default="bce")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--length", type=int, default=20, help="maximum sequence length L")
    parser.add_argument("--turns", type=int, default=2, help="rounds of both, after a first one that is not counted")
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of ours per round; the straightforward implementation takes one"
    )
    parser.add_argument("--only_ours", action="store_true", help="leave out the straightforward implementation")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tiny", action="store_true", help="use tiny backbones and few items, to try the script")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, help="flags that name a dataset and backbones; must come last"
    )
    with tempfile.TemporaryDirectory() as temporary:
        main(parser.parse_args(), Path(temporary))
