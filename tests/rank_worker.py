"""Run under torchrun: gradients of one global batch for every method, and an evaluation, saved by the main rank.

torchrun --nproc_per_node N rank_worker.py DATASET BACKBONE OUT
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

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
from transrec.options import EvaluationOptions
from transrec.training import distributed
from transrec.training.evaluation import Evaluator

SMALL = {"kadapter": {"item_size": 8, "item_heads": 2, "user_size": 8}, "prompt": {"n_tokens": 4}}


def main(folder: Path, backbone: Path, out: Path) -> None:
    world = distributed.start("cpu")
    dataset = load_dataset(folder, 6, 5)
    tokens = cached_tokens(dataset.catalog, load_tokenizer(backbone), 10, True)
    features = TextFeatures(tokens, dataset.split.item_rows)
    gradients, metrics = {}, {}
    for objective in OBJECTIVES.names():
        for method in methods.names():
            # 7 users over 2 ranks and 2 pieces are shared unevenly; 1 user leaves a rank without any.
            for users, pieces in ((7, 1), (7, 2), (1, 1)) if method in ("full", "houlsby") else ((7, 1),):
                torch.manual_seed(0)
                kind = OBJECTIVES.get(objective)
                model = Recommender(TextTower(load_backbone(backbone), 16), SASRec(16, 6, 2, 2, 0.0), kind())
                options = methods.get(method).Options(**SMALL.get(method, {}))
                methods.apply(model, method, options, methods.Rates(1e-3, 1e-4), train_recommender=True)
                model.train()
                # Each rank draws its own dropout, which leaves nothing to compare.
                for module in model.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = 0.0
                wrapped = DistributedDataParallel(model) if world.size > 1 else model
                # Pieces of a batch are batches of their own to in_batch, so only the sums over slots stay comparable.
                pieces = 1 if objective == "in_batch" else pieces
                batches = TrainingBatches(
                    dataset.split, users, kind.negatives, kind.last_only, 0, world.rank, world.size, pieces
                )
                share = next(iter(batches.epoch(1)))
                for number, piece in enumerate(share, start=1):
                    loss = wrapped(piece.to(world.device, features)) / piece.predictions * world.size
                    if world.size > 1 and number < len(share):
                        with wrapped.no_sync():
                            loss.backward()
                    else:
                        loss.backward()
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        gradients[f"{objective} {method} {users} {pieces} {name}"] = parameter.grad
        evaluator = Evaluator(dataset.split, features, EvaluationOptions(eval_memory=1, eval_batch=16), "seen", world)
        metrics[objective] = {part: evaluator.evaluate(model, part) for part in ("validation", "test")}
    if world.is_main:
        save_file(gradients, out / "gradients.safetensors")
        (out / "metrics.json").write_text(json.dumps(metrics))
    distributed.stop()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
