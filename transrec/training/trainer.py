"""The training loop, for pretraining and adaptation, one or many ranks, and any method."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from transrec.command import SECONDS_OF_ONE_SIGNAL, say
from transrec.data.batches import Batch, TrainingBatches
from transrec.data.features import read_ahead
from transrec.errors import Interrupted, TransrecError, about_memory
from transrec.methods import Method, TrainableGroup
from transrec.models.recommender import Recommender
from transrec.models.towers import Tower, backbone_towers
from transrec.options import TrainingOptions
from transrec.processes import STOP_SIGNALS
from transrec.progress import Bar
from transrec.seeds import seed
from transrec.tracking import Trackers
from transrec.training import checkpoint
from transrec.training.evaluation import Evaluator
from transrec.training.metrics import Ranking
from transrec.training.optimizers import Adam, Optimizer, without_decay
from transrec.training.profiler import Clock, peak_memory_mib
from transrec.training.ranks import target_ranks, write_ranks
from transrec.training.run import Run
from transrec.training.schedules import Constant, Schedule
from transrec.training.sharding import (
    average_gradients,
    clip_gradients,
    gather,
    is_sharded,
    is_split,
    local,
    split_like,
    why_not_split,
    why_weights_not_split,
)
from transrec.training.state import VALIDATION, State, load_optimizer, optimizer_tensors

# Metrics in an epoch's log line, after the metric that selects the best epoch.
LOGGED_METRICS = ("HR@10", "NDCG@10", "MRR")
# Buffers are constant, or all ranks change them in the same way, so they need not be sent in each step. The argument
# that turns this off has another name in newer releases of torch.
_BUFFERS_FLAG = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in signature(DistributedDataParallel).parameters
)
STEPS_BETWEEN_LOSS_CHECKS = 50


@dataclass(frozen=True)
class Optimization:
    """How a recommender is optimised: number and size of steps, the optimiser, and the learning rate schedule."""

    options: TrainingOptions
    optimizer: Optimizer = field(default_factory=Adam)
    schedule: Schedule = field(default_factory=Constant)


@dataclass(frozen=True)
class Records:
    """Where training writes its records, and which records.

    Attributes:
        run: the run folder to write to.
        description: description of the model for checkpoints (transrec.runner).
        trackers: trackers that receive each epoch's metrics, in addition to the run's metrics.jsonl.
        save_steps: number of steps after which the state is also saved within an epoch; 0: only after epochs.
        profile: whether to measure the seconds of each phase of a step exactly on a GPU too.
        test: whether to rank the test targets at the end.
    """

    run: Run
    description: checkpoint.Description
    trackers: Trackers
    save_steps: int = 0
    profile: bool = False
    test: bool = True


class Trainer:
    """Trains parameter groups of a recommender, evaluates after every epoch and keeps the best epoch's weights.

    All randomness in a step follows from (seed, epoch, step, rank), so a resumed run takes the same steps as an
    uninterrupted one.

    Args:
        recommender: the recommender with the method applied, on the world's device.
        groups: the parameters to train, with their learning rates.
        batches: this rank's share of the training batches.
        evaluator: evaluator of the same split, whose world and precision training uses as well.
        optimization: number and size of steps, optimiser and schedule.
        records: what to write, and where.
    """

    def __init__(
        self,
        recommender: Recommender,
        groups: list[TrainableGroup],
        batches: TrainingBatches,
        evaluator: Evaluator,
        optimization: Optimization,
        records: Records,
    ):
        self.recommender, self.batches, self.evaluator = recommender, batches, evaluator
        self.world, self.precision, self.options = evaluator.world, evaluator.precision, optimization.options
        self.run, self.description, self.trackers = records.run, records.description, records.trackers
        self.save_steps, self.profile, self.should_test = records.save_steps, records.profile, records.test
        self.clock = Clock(self.world.device, self.profile)
        self.trained = checkpoint.trained(recommender)
        self.parameters = {name: tensor for name, tensor in self.trained.items() if isinstance(tensor, nn.Parameter)}
        self.groups = groups
        self.optimizer_factory, self.schedule = optimization.optimizer, optimization.schedule
        self.optimizer = self.optimizer_factory.make(_optimizer_groups(recommender, groups))
        # Whether the method takes a step of its own after each optimiser step.
        self.method_steps = type(recommender.method).after_step is not Method.after_step
        self.scaler = self.precision.scaler()
        self.state = State()
        self.model: Recommender | DistributedDataParallel = recommender
        self.is_sharded = is_sharded(recommender)
        if self.world.size > 1 and not self.is_sharded:
            devices = [self.world.device] if self.world.device.type == "cuda" else None
            flags: dict[str, Any] = {"device_ids": devices, _BUFFERS_FLAG: False}
            self.model = DistributedDataParallel(recommender, **flags)
        self.saved: str | None = None
        self._signal: int | None = None
        self._may_leave_at_once = False
        self._pending: list[Tensor] = []

    def fit(self) -> dict[str, Any]:
        """Train until the last epoch or early stopping, then test the best checkpoint unless testing is turned off.

        Returns:
            selected_by, best_epoch, epochs_trained, validation and test metrics, test_intervals if only a sample of
            the users is evaluated, seconds_per_epoch, phase_seconds (feed, forward, backward and step),
            peak_memory_mib of the device and peak_host_memory_mib.

        Raises:
            TransrecError: the loss or the weights are no longer finite; the last good checkpoint is kept.
            Interrupted: SIGINT or SIGTERM arrived; the state is saved.
        """
        with self._catch_signals():
            while not self.state.finished:
                with about_memory("training", self._memory_advice()):
                    self._train_epoch()
                # Evaluation may take long: a process killed during it must not lose the epoch.
                self._save_state()
                self._leave_if_asked()
                self._finish_epoch()
                self._save_state()
                self._leave_if_asked()
            tested = self._test() if self.should_test else {}
        epochs = self.state.epochs
        return {
            "selected_by": self.options.select_by,
            "best_epoch": self.state.best_epoch,
            "epochs_trained": len(epochs),
            "validation": self.state.best_metrics,
            **tested,
            "seconds_per_epoch": sum(epoch["train_seconds"] for epoch in epochs) / len(epochs),
            "phase_seconds": _phase_means([epoch["phase_seconds"] for epoch in epochs]),
            "peak_memory_mib": max(epoch["peak_memory_mib"] for epoch in epochs),
            "peak_host_memory_mib": peak_memory_mib(torch.device("cpu")),
        }

    def _test(self) -> dict[str, Any]:
        """Return the test metrics at the best epoch, with their intervals if only a sample of users is evaluated."""
        self._load(self._read_best())
        ranking = self._rank("test")
        self._save_ranks("test", ranking)
        tested: dict[str, Any] = {"test": self.evaluator.summarise(ranking)}
        if intervals := self.evaluator.intervals(ranking, "test"):
            tested["test_intervals"] = intervals
        return tested

    def resume(self) -> bool:
        """Load the run's last saved state; return False if there is none.

        Raises TransrecError if the state is damaged or of another run, or if the best checkpoint that it refers to is
        missing, damaged or of another run.
        """
        if not self.run.last.exists():
            return False
        tensors, description = checkpoint.read(self.run.last)
        model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        self._check_base(self.run.last, description)
        self.state = State.from_description(self.run.last, description)
        self._check_trained(self.run.last, model)
        self._load(model)
        if self.state.best_epoch:
            self._read_best()
        begun = len(self.state.epochs) + (self.state.step > 0)
        if self.options.epochs < begun:
            raise TransrecError(f"--epochs {self.options.epochs}: the run has begun epoch {begun} already")
        self.saved = self.state.position(len(self.batches))
        # The run may now have more epochs, or more patience, than before.
        self.state.finished = self.state.epoch > self.options.epochs or self._out_of_patience()
        if not self.state.finished:
            if not any(name.startswith("optimizer.") for name in tensors):
                raise TransrecError(
                    f"{self.run.last}: the run finished without --keep_state, so that it cannot be trained further; "
                    f"start a new run with as many --epochs or as much --patience, and --keep_state if it may go on"
                )
            # The optimiser numbers its parameters in the order of its groups.
            names = {parameter: name for name, parameter in self.parameters.items()}
            in_order = {names[param]: param for group in self.optimizer.param_groups for param in group["params"]}
            load_optimizer(self.optimizer, self.optimizer_factory.state_like, in_order, self.run.last, tensors)
            try:
                self.scaler.load_state_dict(description.scaler or {})
            except (KeyError, TypeError, RuntimeError) as error:
                raise checkpoint.damaged(self.run.last, error) from error
        return True

    def _check_base(self, path: Path, description: checkpoint.Description) -> None:
        if description.base.frozen_sha256 != self.description.base.frozen_sha256:
            raise TransrecError(
                f"{path}: was trained on other base weights than --text_encoder and --checkpoint give now; "
                f"restore those, or start a new run"
            )

    def _read_best(self) -> dict[str, Tensor]:
        """Return the trained tensors after the best epoch. Raises TransrecError if the file holds anything else."""
        path, state = self.run.best, self.state
        if not path.exists():
            raise TransrecError(f"{path}: the best epoch's weights are not there; put them back, or start a new run")
        tensors, description = checkpoint.read(path)
        self._check_base(path, description)
        saved = description.epoch, description.validation
        # The run may have been killed after it wrote the best checkpoint and before it saved its state. The epoch is
        # then evaluated once more, and the checkpoint written again.
        is_ahead = state.step == len(self.batches) and saved[0] == state.epoch
        if saved != (state.best_epoch, state.best_metrics) and not is_ahead:
            raise TransrecError(
                f"{path}: is of epoch {saved[0]}, and the run's best is epoch {state.best_epoch}, of other weights or "
                f"metrics; put that epoch's file back, or start a new run"
            )
        self._check_trained(path, tensors)
        return tensors

    @torch.no_grad()
    def _load(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in self.trained.items():
            tensor.copy_(split_like(tensors[name], tensor))

    def _check_trained(self, path: Path, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != self.trained.keys():
            name = min(tensors.keys() ^ self.trained.keys())
            raise TransrecError(
                f"{path}: {name} is missing there, or is not a trainable tensor; put the right file back"
            )
        checkpoint.check_shapes(path, tensors, self.trained)

    def drop_optimizer(self) -> None:
        """Remove the optimiser's state from a finished run's last save. A resumed run still gives the same result."""
        if self.world.is_main:
            checkpoint.save(self.run.last, *checkpoint.read(self.run.last, "model."))

    def _memory_advice(self) -> str:
        """Return advice on flags that save memory: those that a resumed run may change, then those of a new run."""
        options, features = self.options, self.evaluator.features
        runs = backbone_towers(cast("list[Tower]", self.recommender.item_encoder.towers))
        trains = any(tower.trains_inside for tower in runs)
        holds = any(getattr(part, "held", None) is not None for part in getattr(features, "parts", [features]))
        same = {
            "--gradient_checkpointing": trains and not options.gradient_checkpointing,
            "--shard": bool(runs)
            and not options.shard
            and not why_not_split(options, self.world, self.precision)
            and not why_weights_not_split(self.recommender),
            "--cache_device disk": holds,
        }
        restart = {
            "--cached auto": bool(runs) and not trains,
            f"a larger --accumulate than {options.accumulate}": options.accumulate < options.batch_size,
            "--precision bf16": self.precision.name == "fp32",
            "fewer --title_tokens": any(tower.modality == "text" for tower in runs),
            f"a smaller --batch_size than {options.batch_size}": options.batch_size > 1,
        }
        choices = (("resume with", same), ("start a new run with", restart))
        advice = [
            f"{verb} {' or '.join(flags)}" for verb, by in choices if (flags := [flag for flag in by if by[flag]])
        ]
        return ", or ".join(["free some", *advice])

    def _train_epoch(self) -> None:
        state, steps = self.state, len(self.batches)
        self.model.train()
        started = time.perf_counter()
        self.clock = Clock(self.world.device, self.profile)
        self.clock.enter("feed")
        bar = Bar(
            total=steps,
            initial=state.step,
            desc=f"epoch {state.epoch}",
            unit="step",
            disable=not self.world.is_main,
            leave=False,
        )
        with bar:
            for pieces, read in self._epoch():
                self._pending.append(self._step(pieces, read))
                state.step += 1
                bar.update()
                stop = self.world.any(self._signal is not None)
                save = bool(self.save_steps) and state.step % self.save_steps == 0
                saving = stop or save or state.step == steps
                if saving or len(self._pending) == STEPS_BETWEEN_LOSS_CHECKS:
                    self._check_losses()
                    bar.set_postfix(loss=f"{state.loss_sum / state.step:.4f}")
                if saving:
                    self._check_weights()
                if stop or save:
                    state.seconds += time.perf_counter() - started
                    started = time.perf_counter()
                    self._save_state()
                if stop:
                    self._leave_if_asked()
                self.clock.enter("feed")
        self.clock.enter(None)
        state.seconds += time.perf_counter() - started

    def _epoch(self) -> Iterator[tuple[list[Batch], list[tuple[Tensor, ...]]]]:
        """Yield, for each remaining step of this epoch, its pieces and the contents that the features read for them."""
        steps = range(self.state.step, len(self.batches))
        return read_ahead(partial(self.batches.pieces_of, self.state.epoch), steps, _items_of, self.evaluator.features)

    def _step(self, pieces: list[Batch], read: list[tuple[Tensor, ...]]) -> Tensor:
        """Take one optimiser step; return this rank's part of the global batch's mean loss, on the device."""
        device, model = self.world.device, self.model
        seed(self.options.seed, self.state.epoch, self.state.step, self.world.rank)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for number, (piece, content) in enumerate(zip(pieces, read, strict=True), start=1):
            is_last = number == len(pieces)
            with nullcontext() if is_last or isinstance(model, Recommender) else model.no_sync():
                self.clock.enter("feed")
                batch = piece.to(device, self.evaluator.features, content)
                self.clock.enter("forward")
                with self.precision.autocast():
                    loss = model(batch) / piece.predictions
                self.clock.enter("backward")
                # DDP averages gradients over ranks, whereas the global batch's mean loss is the sum of their parts.
                to_average = loss * self.world.size
                if is_last and (penalty := self.recommender.method.penalty()) is not None:
                    # The penalty is the same on every rank, so it must be averaged, not summed.
                    to_average, loss = to_average + penalty, loss + penalty / self.world.size
                self.scaler.scale(to_average).backward()
            total += loss.detach()
        if self.is_sharded:
            average_gradients((param for param in self.parameters.values() if not is_split(param)), self.world)
        self.clock.enter("step")
        self._set_rates()
        if self.options.clip_grad_norm or self.method_steps:
            self.scaler.unscale_(self.optimizer)
        if self.options.clip_grad_norm:
            clip_gradients(self.parameters.values(), self.options.clip_grad_norm, self.world)
        scale = self.scaler.get_scale() if self.method_steps else 1.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # If the gradient overflows in fp16, the scaler skips the step and lowers the scale.
        if self.method_steps and self.scaler.get_scale() >= scale:
            self._after_step()
        return total

    def _set_rates(self) -> None:
        """Set the learning rates of this step: each group's own rate times the schedule's factor."""
        factor = self.schedule(*self._progress())
        rates = {group.name: group.lr for group in self.groups}
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["name"]] * factor

    def _after_step(self) -> None:
        """Take the method's own step, which is the same on all ranks, including its random numbers."""
        seed(self.options.seed, self.state.epoch, self.state.step)
        taken, steps = self._progress()
        with torch.no_grad():
            self.recommender.method.after_step(taken + 1, steps)

    def _progress(self) -> tuple[int, int]:
        """Return the steps that the run has taken before this one, and its total without early stopping."""
        steps = len(self.batches)
        return (self.state.epoch - 1) * steps + self.state.step, self.options.epochs * steps

    def _check_losses(self) -> None:
        """Copy the losses since the last check to the host. Raises TransrecError if a loss is not finite."""
        losses = self.world.sum(torch.stack(self._pending)).tolist()
        first = self.state.step - len(losses)
        self._pending.clear()
        for step, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise self._diverged(step, f"the loss is {loss}")
            self.state.loss_sum += loss

    def _check_weights(self) -> None:
        """Raise TransrecError if weights are not finite. Called before a save.

        The last step's gradient may have spoilt the weights although its loss was still finite.
        """
        finite = torch.stack([torch.isfinite(local(tensor)).all() for tensor in self.trained.values()]).all()
        # A rank sees only its own part of split tensors.
        if self.world.any(not finite):
            raise self._diverged(self.state.step - 1, "the weights are no longer finite")

    def _diverged(self, step: int, what: str) -> TransrecError:
        rates = ", ".join(f"{group.name} {group.lr:g}" for group in self.groups)
        left = f"the last good checkpoint is {self.run.best}" if self.state.best_epoch else "no checkpoint was made yet"
        return TransrecError(
            f"epoch {self.state.epoch}, step {step + 1} of {len(self.batches)}: {what} (learning rates: {rates}; "
            f"precision {self.precision.name}); {left}. Lower the learning rates, clip with --clip_grad_norm 1, or use "
            f"--precision fp32"
        )

    def _finish_epoch(self) -> None:
        state = self.state
        started = time.perf_counter()
        ranking = self._rank("validation")
        metrics = self.evaluator.summarise(ranking)
        line = {
            "epoch": state.epoch,
            "train_loss": state.loss_sum / state.step,
            **{f"{VALIDATION}{name}": value for name, value in metrics.items()},
            "train_seconds": state.seconds,
            "phase_seconds": self.clock.seconds,
            "evaluation_seconds": time.perf_counter() - started,
            "peak_memory_mib": peak_memory_mib(self.world.device),
        }
        state.epochs.append(line)
        selected_by = self.options.select_by
        better = not state.best_metrics or metrics[selected_by] > state.best_metrics[selected_by]
        if better:
            state.best_epoch, state.best_metrics = state.epoch, metrics
            self._save_ranks("validation", ranking)
            trained = gather(self.trained, self.world)
            if self.world.is_main:
                description = replace(self.description, epoch=state.epoch, validation=metrics)
                checkpoint.save(self.run.best, trained, description)
        shown = [name for name in dict.fromkeys((selected_by, *LOGGED_METRICS)) if name in metrics]
        self.run.log(
            f"epoch {state.epoch:3d}  loss {line['train_loss']:.4f}  "
            + "  ".join(f"{name} {metrics[name]:.4f}" for name in shown)
            + f"  train {line['train_seconds']:.1f} s  evaluation {line['evaluation_seconds']:.1f} s"
            + ("  best" if better else "")
        )
        self.run.write_metrics(state.epochs)
        self.trackers.log(state.epochs)
        state.finished = state.epoch >= self.options.epochs or self._out_of_patience()
        state.epoch, state.step, state.loss_sum, state.seconds = state.epoch + 1, 0, 0.0, 0.0

    def _rank(self, part: str) -> Ranking:
        """Rank the targets of a part. A signal stops this at once, because all earlier work has been saved."""
        self._may_leave_at_once = True
        try:
            return self.evaluator.rank(self.recommender, part)
        finally:
            self._may_leave_at_once = False

    def _save_ranks(self, part: str, ranking: Ranking) -> None:
        if self.world.is_main:
            ranks = target_ranks(self.evaluator.split, part, ranking.ranks, ranking.margins)
            write_ranks(self.run.folder, part, ranks)

    def _out_of_patience(self) -> bool:
        worse = len(self.state.epochs) - self.state.best_epoch
        return worse >= self.options.patience and worse * len(self.batches) >= self.options.patience_steps

    def _save_state(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.trained.items()}
        tensors = gather(tensors | optimizer_tensors(self.optimizer, self.parameters), self.world)
        if not self.world.is_main:
            return
        description = replace(self.description, state=asdict(self.state), scaler=self.scaler.state_dict())
        checkpoint.save(self.run.last, tensors, description)
        self.saved = self.state.position(len(self.batches))

    @contextmanager
    def _catch_signals(self):
        """Context that notes the first SIGINT or SIGTERM; a second one acts at once.

        A second signal within SECONDS_OF_ONE_SIGNAL counts as the first one, delivered twice.
        """
        previous, since = {}, 0.0

        def note(number, frame):
            nonlocal since
            if self._signal is not None:
                if time.monotonic() - since > SECONDS_OF_ONE_SIGNAL:
                    signal.signal(number, previous[number])
                    signal.raise_signal(number)
                return
            self._signal, since = number, time.monotonic()
            if self._may_leave_at_once:
                raise Interrupted(number)
            if self.world.is_main:
                say(f"{signal.Signals(number).name}: stops after this step and saves; the same again stops at once")

        try:
            for number in STOP_SIGNALS:
                previous[number] = signal.signal(number, note)
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _leave_if_asked(self) -> None:
        if self.world.any(self._signal is not None):
            raise Interrupted(self._signal or signal.SIGTERM)


def _optimizer_groups(recommender: Recommender, groups: list[TrainableGroup]) -> list[dict[str, Any]]:
    """Return the groups for `Optimizer.make`, each divided by whether parameters decay and whether they are split."""
    undecayed = without_decay(recommender)

    def kind(parameter: nn.Parameter) -> tuple[bool, bool]:
        return parameter not in undecayed, is_split(parameter)

    # A fused optimiser step cannot mix split tensors with tensors that are not split.
    kinds = list(product((True, False), (False, True)))
    return [
        {"params": parameters, "lr": group.lr, "decays": decays, "name": group.name}
        for group in groups
        for decays, split in kinds
        if (parameters := [param for param in group.parameters.values() if kind(param) == (decays, split)])
    ]


def _items_of(pieces: list[Batch]) -> list[Tensor]:
    return [piece.items for piece in pieces]


def _phase_means(epochs: list[dict[str, float]]) -> dict[str, float]:
    phases = dict.fromkeys(phase for epoch in epochs for phase in epoch)
    return {phase: sum(epoch.get(phase, 0.0) for epoch in epochs) / len(epochs) for phase in phases}
