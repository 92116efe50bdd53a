"""Run under torchrun: what a step of training gives for every method, and an evaluation, saved by the main rank.

torchrun --nproc_per_node N rank_worker.py DATASET BACKBONE OUT
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from examples import EXAMPLES, PACKAGED, registered, small
from safetensors.torch import save_file

from transrec import methods
from transrec.data.batches import TrainingBatches
from transrec.data.catalog import cached_tokens
from transrec.data.dataset import load_dataset
from transrec.data.features import TextFeatures
from transrec.modalities.text import TextTower
from transrec.models.backbone import load_backbone, load_tokenizer
from transrec.models.objectives import OBJECTIVES
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.options import EvaluationOptions, TrainingOptions
from transrec.tracking import Trackers
from transrec.training import distributed
from transrec.training.evaluation import Evaluator
from transrec.training.trainer import Optimization, Records, Trainer

# Objectives that are tried under every method.
PAPERS = ("bce", "cpc", "in_batch")


def main(folder: Path, backbone: Path, out: Path) -> None:
    world = distributed.start("cpu")
    dataset = load_dataset(folder, 6, 5)
    tokens = cached_tokens(dataset.catalog, load_tokenizer(backbone), 10, True)
    features = TextFeatures(tokens, dataset.split.item_rows)
    evaluator = Evaluator(dataset.split, features, EvaluationOptions(eval_memory=1, eval_batch=16), world)
    gradients, metrics = {}, {}
    names = sorted({*PACKAGED, *EXAMPLES})
    for objective in OBJECTIVES.names():
        entry = OBJECTIVES.get(objective)
        # Fewer than the small dataset has items.
        fewer = {"negatives": 8} if entry.Options.defaults().get("negatives", 0) > 8 else {}
        loss_of = entry(**fewer)
        # What the papers do not train by is tried on two methods alone.
        for method in names if objective in PAPERS else ("full", "houlsby"):
            # 7 users over 2 ranks and 2 pieces are shared unevenly; 1 user leaves a rank without any.
            for users, pieces in ((7, 1), (7, 2), (1, 1)) if method in ("full", "houlsby") else ((7, 1),):
                torch.manual_seed(0)
                model = Recommender(TextTower(load_backbone(backbone), 16), SASRec(16, 6, 2, 2, 0.0), loss_of)
                with registered([method]):
                    options = methods.get(method).Options(**small(method))
                    groups = methods.apply(model, method, options, methods.Rates(1e-3, 1e-4), train_recommender=True)
                model.train()
                # Each rank draws its own dropout, which leaves nothing to compare.
                for module in model.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = 0.0
                # Pieces of a batch are batches of their own to in_batch, so only the sums over slots stay comparable.
                pieces = 1 if objective == "in_batch" else pieces
                mine = (world.rank, world.size, pieces, loss_of.sampling)
                batches = TrainingBatches(dataset.split, users, loss_of.negatives, loss_of.last_only, 0, *mine)
                standing = [replace(group, lr=0.0) for group in groups]
                trainer = Trainer(
                    model,
                    standing,
                    batches,
                    evaluator,
                    Optimization(TrainingOptions()),
                    Records(None, {}, Trackers(Path())),
                )
                loss = trainer._step(*next(trainer._epoch()))
                made = {f"{name} gradient": tensor.grad for name, tensor in trainer.parameters.items()}
                made |= {name: trainer.trained[name] for name in model.saved_buffers}
                # Sums of what the ranks hold alike, and of their parts of the loss.
                for name, tensor in made.items():
                    mean = world.sum(tensor.double()) / world.size
                    assert torch.equal(mean, tensor.double()), f"{method}: the ranks differ in {name}"
                made["loss"] = world.sum(loss)
                gradients |= {f"{objective} {method} {users} {pieces} {name}": made[name] for name in made}
        metrics[objective] = {part: evaluator.evaluate(model, part) for part in ("validation", "test")}
    if world.is_main:
        save_file(gradients, out / "gradients.safetensors")
        (out / "metrics.json").write_text(json.dumps(metrics))
    distributed.stop()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
