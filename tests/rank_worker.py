"""Run under torchrun: a training step of every method, and an evaluation, saved by the main rank.

torchrun --nproc_per_node N rank_worker.py DATASET BACKBONE OUT
torchrun --nproc_per_node 2 rank_worker.py DATASET BACKBONE     # only checks that every method can be split (--shard)
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examples import EXAMPLES, PACKAGED, registered, small
from safetensors.torch import save_file

from transrec import methods
from transrec.data.batches import TrainingBatches
from transrec.data.catalog import cached_tokens
from transrec.data.dataset import load_dataset
from transrec.data.features import TextFeatures
from transrec.data.groups import use_one_group
from transrec.errors import TransrecError
from transrec.modalities.text import TextTower
from transrec.models.backbone import load_backbone, load_tokenizer
from transrec.models.objectives import OBJECTIVES
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.options import EvaluationOptions, TrainingOptions
from transrec.tracking import Trackers
from transrec.training import distributed
from transrec.training.evaluation import Evaluator
from transrec.training.sharding import is_sharded, is_split, shard
from transrec.training.trainer import Optimization, Records, Trainer

# Objectives that are tried with every method.
PAPERS = ("bce", "cpc", "in_batch")
NAMES = sorted({*PACKAGED, *EXAMPLES})


class Work:
    """A step and an evaluation of a small recommender, on the ranks of a world."""

    def __init__(self, folder: Path, backbone: Path):
        self.world, self.backbone = distributed.start("cpu"), backbone
        self.dataset = load_dataset(folder, 6, 5)
        tokens = cached_tokens(self.dataset.catalog, load_tokenizer(backbone), 10, True)
        features = TextFeatures(tokens, self.dataset.split.item_rows)
        options = EvaluationOptions(eval_memory=1, eval_batch=16)
        self.evaluator = Evaluator(self.dataset.split, features, options, self.world)

    def step(self, loss_of, method: str, users: int, pieces: int, sharded: bool = False) -> dict[str, torch.Tensor]:
        """Take a training step and return its full tensors by name: gradients, the method's buffers and the loss."""
        torch.manual_seed(0)
        model = Recommender(TextTower(load_backbone(self.backbone), 16), SASRec(16, 6, 2, 2, 0.0), loss_of)
        with registered([method]):
            options = methods.get(method).Options(**small(method))
            groups = methods.apply(model, method, options, methods.Rates(1e-3, 1e-4), train_recommender=True)
        model.train()
        # Each rank draws its own dropout, so there would be nothing to compare.
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if sharded:
            groups = shard(model, groups, self.world)
        world, self.model = self.world, model
        share = (world.rank, world.size, pieces, loss_of.sampling)
        batches = TrainingBatches(self.dataset.split, users, loss_of.negatives, loss_of.last_only, 0, *share)
        standing = [replace(group, lr=0.0) for group in groups]
        records = Records(None, {}, Trackers(Path()))
        trainer = Trainer(model, standing, batches, self.evaluator, Optimization(TrainingOptions()), records)
        loss = trainer._step(*next(trainer._epoch()))
        gradients = {f"{name} gradient": tensor.grad for name, tensor in trainer.parameters.items()}
        tensors = {name: tensor.full_tensor() if is_split(tensor) else tensor for name, tensor in gradients.items()}
        tensors |= {name: trainer.trained[name] for name in model.saved_buffers}
        # The ranks hold equal tensors; of the loss, each holds a part.
        for name, tensor in tensors.items():
            mean = world.sum(tensor.double()) / world.size
            assert torch.equal(mean, tensor.double()), f"{method}: the ranks differ in {name}"
        return tensors | {"loss": world.sum(loss)}

    def evaluate(self) -> dict[str, dict[str, float]]:
        return {part: self.evaluator.evaluate(self.model, part) for part in ("validation", "test")}


def main(folder: Path, backbone: Path, out: Path | None = None) -> None:
    work = Work(folder, backbone)
    if out is None:
        check_split(work, NAMES)
    else:
        save_steps(work, out)
    distributed.stop()


def save_steps(work: Work, out: Path) -> None:
    gradients, metrics = {}, {}
    for objective in OBJECTIVES.names():
        entry = OBJECTIVES.get(objective)
        # Fewer than the small dataset has items.
        fewer = {"negatives": 8} if entry.Options.defaults().get("negatives", 0) > 8 else {}
        loss_of = entry(**fewer)
        # Objectives that the papers do not use are tried with only two methods.
        for method in NAMES if objective in PAPERS else ("full", "houlsby"):
            # 7 users over 2 ranks and 2 pieces are divided unevenly; 1 user leaves a rank without any.
            for users, pieces in ((7, 1), (7, 2), (1, 1)) if method in ("full", "houlsby") else ((7, 1),):
                # in_batch treats the pieces of a batch as separate batches, so only sums over slots are comparable.
                pieces = 1 if objective == "in_batch" else pieces
                by_name = work.step(loss_of, method, users, pieces)
                gradients |= {f"{objective} {method} {users} {pieces} {name}": by_name[name] for name in by_name}
        metrics[objective] = work.evaluate()
    if work.world.size > 1:
        check_split(work, ("adalora", "compacter", "full"))
    if work.world.is_main:
        save_file(gradients, out / "gradients.safetensors")
        (out / "metrics.json").write_text(json.dumps(metrics))


def check_split(work: Work, names: Iterable[str]) -> None:
    """Check that every method has the same gradients and evaluation whether or not it is split over the ranks."""
    use_one_group(work.evaluator.features)
    loss_of = OBJECTIVES.get("bce")()
    for method in names:
        # With two pieces, each adds its part to gradients that are already split.
        case = (loss_of, method, 7, 2 if method in ("full", "houlsby") else 1)
        whole, evaluated = work.step(*case), work.evaluate()
        if type(work.model.method).after_step is not methods.Method.after_step:
            with pytest.raises(TransrecError, match="--shard: the method reads or changes whole weights"):
                work.step(*case, sharded=True)
            continue
        split = work.step(*case, sharded=True)
        assert is_sharded(work.model), f"{method}: nothing is split"
        assert whole.keys() == split.keys()
        for name in whole:
            torch.testing.assert_close(split[name], whole[name], atol=1e-6, rtol=1e-5, msg=f"{method}: {name}")
        assert work.evaluate() == evaluated, f"{method}: ranks otherwise when it is split"


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
