"""What scripts call: parse the command line, prepare, train, and write the result."""

import sys
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from transrec.assembly import (
    apply_method,
    build_recommender,
    checkpoint_file,
    describe,
    load_run,
    load_start,
    parameters_left_out,
    stored_states,
    tower_of,
)
from transrec.caching import StateCache, weights_digest
from transrec.command import reporting, resume_command
from transrec.data.batches import TrainingBatches
from transrec.data.dataset import Dataset, load_dataset
from transrec.data.features import Features, MultimodalFeatures
from transrec.data.states import Provenance, StateFeatures
from transrec.errors import (
    FileError,
    Interrupted,
    MemoryShortage,
    TransrecError,
    about_file,
    about_memory,
    as_told,
    printable,
    warn,
)
from transrec.modalities import BackboneModality
from transrec.paths import default_runs_folder, file_sha256
from transrec.plugins import hashes
from transrec.settings import Settings, digest, parse
from transrec.training import distributed
from transrec.training.compiling import check_compiler, compile_encoders
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator
from transrec.training.launcher import launch
from transrec.training.precision import Precision
from transrec.training.profiler import device_name, environment, parameter_table, parameter_totals
from transrec.training.run import Run, read_options
from transrec.training.threads import considerate
from transrec.training.trainer import SELECTED_BY, Trainer

__all__ = ["adapt", "execute", "load_run", "parse", "pretrain"]

LESS_MEMORY = (
    "free some, use a smaller backbone, give fewer --title_tokens, or, for cached hidden states, --cache_device disk"
)


def pretrain(**defaults: Any) -> None:
    """Command line of a pretraining script: train everything on a source domain. `defaults` are flags by name."""
    adapt("full", **defaults)


def adapt(method: str, **defaults: Any) -> None:
    """Command line of an adaptation script: `method` on a target domain. `defaults` are flags by name.

    Leaves as `transrec.command.reporting` says.
    """
    _command_line(method, defaults, execute)


def _command_line(method: str, defaults: dict[str, Any], act: Callable[[Settings], Any]) -> None:
    try:
        with reporting():
            settings = parse(sys.argv[1:], method, defaults)
            launch(settings.run.nproc)
            act(settings)
    finally:
        distributed.stop()


def cache(**defaults: Any) -> None:
    """Command line of the caching script: compute a dataset's hidden states and leave."""

    def make(settings: Settings) -> None:
        world = distributed.start(settings.run.device, settings.run.deterministic, settings.run.timeout)
        with world.naming_silent_ranks(), considerate():
            dataset = _dataset(settings)
            disable_progress_bar()
            precision = Precision(settings.training.precision, world.device)
            features = _features(settings, dataset, world, precision, print if world.is_main else lambda text: None)
            for part in _parts(features):
                if world.is_main:
                    print(printable(f"cached      {part.file.path}"))

    _command_line("iisan", defaults | {"cached": True}, make)


def execute(settings: Settings) -> dict[str, Any]:
    """Run to the end and return what result.json holds.

    Raises:
        TransrecError: bad input, before training starts; or training that diverged.
        Interrupted: stopped by a signal, after saving.
    """
    started = datetime.now()
    # One bar for each long step of ours is enough.
    disable_progress_bar()
    world = distributed.start(settings.run.device, settings.run.deterministic, settings.run.timeout)
    with world.naming_silent_ranks(), considerate():
        folder = settings.run.run_folder or _default_folder(settings, started, world)
        with closing(Run(folder, world.is_main, resume=bool(settings.run.resume))) as run:
            return _run(settings, run, world, started)


def _run(settings: Settings, run: Run, world: World, started: datetime) -> dict[str, Any]:
    trainer = None
    try:
        with about_memory("preparing the run", LESS_MEMORY):
            trainer, table = _prepare(settings, run, world)
        return _train(settings, run, world, started, trainer, table)
    except Interrupted as stop:
        if run.has_begun:
            saved = f"{trainer.saved} is saved" if trainer and trainer.saved else "no step is saved yet"
            stop.advice = stop.advice or f"{saved}; continue with: {_resume_command(settings, run, world)}"
            with suppress(FileError):
                run.note(f"stopped by {stop}: {stop.advice}")
        raise
    except Exception as error:
        told = as_told(error)
        if run.has_begun and isinstance(told, FileError | MemoryShortage):
            again = _resume_command(settings, run, world)
            raise type(told)(f"{told}; the run continues with: {again}") from error
        raise
    finally:
        run.discard()


def _resume_command(settings: Settings, run: Run, world: World) -> str:
    return resume_command(run.folder, world.size, settings.run.plugin)


def _train(
    settings: Settings, run: Run, world: World, started: datetime, trainer: Trainer, table: list[dict[str, Any]]
) -> dict[str, Any]:
    with distributed.only_deterministic_algorithms():
        outcome = trainer.fit()
    trainable, total = parameter_totals(table)
    result = {
        "method": settings.method,
        "item_tower": settings.model.item_tower,
        "name": settings.name,
        "dataset": Path(settings.data.dataset).name,
        **outcome,
        "popularity": trainer.evaluator.popularity("test"),
        "trainable_parameters": trainable,
        "total_parameters": total,
        "parameters": table,
        "checkpoint_bytes": run.best.stat().st_size,
        "precision": trainer.precision.name,
        "seed": settings.training.seed,
        "wall_seconds": (datetime.now() - started).total_seconds(),
        "environment": environment(world.device, world.size),
    }
    run.write_result(result)
    if not settings.run.keep_state:
        trainer.drop_optimizer()
    for name, metrics in (("test", result["test"]), ("popularity", result["popularity"])):
        run.log(f"{name:11} " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    if result["test"][SELECTED_BY] < result["popularity"][SELECTED_BY]:
        run.log("warning     ranks below popularity: train longer, or at other learning rates")
    run.log(f"result      {run.folder / 'result.json'}")
    return result


def _prepare(settings: Settings, run: Run, world: World) -> tuple[Trainer, list[dict[str, Any]]]:
    """All that comes before the first step, every check included: the trainer, and the table of what trains."""
    run.log(f"{settings.name}, on {settings.data.dataset}")
    if settings.training.compile:
        check_compiler(world.device)
    dataset = _dataset(settings)
    run.log(f"data        {dataset.summary}")
    precision = Precision(settings.training.precision, world.device)
    features = _features(settings, dataset, world, precision, run.log)
    files = _data_files(run, settings, dataset, features)
    recommender = build_recommender(settings, dataset.split.item_count)
    if settings.run.checkpoint:
        load_start(recommender, settings)
    groups = apply_method(recommender, settings)
    recommender.to(world.device)
    if settings.training.compile:
        compile_encoders(recommender)

    objective = settings.choice("objective").entry
    batches = TrainingBatches(
        dataset.split,
        settings.training.batch_size,
        negatives=objective.negatives,
        last_only=objective.last_only,
        seed=settings.training.seed,
        rank=world.rank,
        ranks=world.size,
        pieces=settings.training.accumulate,
    )
    evaluator = Evaluator(dataset.split, features, settings.evaluation, settings.data.mask_history, world, precision)
    table = parameter_table(recommender, groups, parameters_left_out(settings))
    trainer = Trainer(
        recommender,
        groups,
        batches,
        evaluator,
        settings.training,
        run,
        world,
        precision,
        describe(settings, recommender),
        save_steps=settings.run.save_steps,
        writer=_tensorboard(settings, run),
        profile=settings.run.profile,
    )
    _announce(run, settings, table, world, precision, len(batches))
    for modality in settings.modalities.values():
        modality.announce(run.log, warn if world.is_main else lambda text: None)
    if settings.run.resume and trainer.resume():
        run.log(f"resumed     epoch {trainer.state.epoch}, step {trainer.state.step}")
    # From here on the folder holds a run; a start that failed before can simply be repeated.
    options = settings.as_dict() | {"output": str(run.folder), "resume": None, "accept_edits": False, "files": files}
    run.write_options(options | {"digest": digest(options)})
    return trainer, table


def _dataset(settings: Settings) -> Dataset:
    data = settings.data
    dataset = load_dataset(
        data.dataset,
        data.max_seq_len,
        data.min_seq_len,
        data.users_file,
        data.items_file,
        data.user_fraction,
        data.subset_seed,
    )
    if data.text_template is not None and "text" in settings.modalities:
        dataset = replace(dataset, catalog=dataset.catalog.reading(data.text_template))
    return dataset


def _parts(features: Features) -> list[Features]:
    return features.parts if isinstance(features, MultimodalFeatures) else [features]


def _features(settings: Settings, dataset: Dataset, world: World, precision: Precision, log) -> Features:
    stored = stored_states(settings)
    options, rows = settings.method_options, dataset.split.item_rows
    everything = np.arange(len(dataset.catalog.ids))
    parts: list[Features] = []
    for name, modality in settings.modalities.items():
        of = modality.features(dataset, everything if name in stored else rows, world)
        if name in stored:
            folder = Path(options.state_cache) if options.state_cache else dataset.catalog.path.parent / ".transrec"
            cache = StateCache(folder, world, precision, log)
            made_of = _provenance(settings, modality, of, stored[name], precision)
            shape = (len(everything), len(stored[name]), modality.config.hidden_size)
            file = cache.states(made_of, shape, of, partial(tower_of, settings, name))
            of = StateFeatures(file, rows, world.device, options.cache_device)
        parts.append(of)
    return MultimodalFeatures(parts) if len(parts) > 1 else parts[0]


def _provenance(
    settings: Settings, modality: BackboneModality, features: Features, states: list[int], precision: Precision
) -> Provenance:
    """Of states of what `features` give of the whole catalogue."""
    checkpoint, seed = settings.run.checkpoint, settings.training.seed
    return Provenance(
        modality=modality.name,
        model_type=modality.config.model_type,
        weights=weights_digest(modality.encoder, modality.config, seed if settings.model.random_backbone else None),
        checkpoint=file_sha256(checkpoint_file(checkpoint)) if checkpoint else None,
        inputs=features.digest,
        preprocessing=modality.preprocessing,
        pooling=modality.pooling,
        states=states,
        dtype=settings.method_options.state_dtype,
        precision=precision.name,
        about={"encoder": modality.encoder, "dataset": settings.data.dataset}
        | ({"checkpoint": checkpoint} if checkpoint else {}),
    )


def _default_folder(settings: Settings, started: datetime, world: World) -> Path:
    name = f"{started:%Y%m%d-%H%M%S}-{Path(sys.argv[0]).stem}-{Path(settings.data.dataset).name}"
    if world.size > 1:
        names = [name]
        torch.distributed.broadcast_object_list(names)
        name = names[0]
    return default_runs_folder() / name


def _data_files(run: Run, settings: Settings, dataset: Dataset, features: Features) -> dict[str, str]:
    """SHA-256 of each data file and plugin. Raises TransrecError when a resumed run's are not what they were."""
    files = dataset.hashes()
    for modality, part in zip(settings.modalities.values(), _parts(features), strict=True):
        if not isinstance(part, StateFeatures):
            files |= modality.files(part)
    if settings.run.resume and (run.folder / "options.json").exists():
        before = read_options(run.folder).get("files", files)
        for path, digest in files.items():
            if before.get(path) != digest:
                raise TransrecError(
                    f"{path}: has changed since {run.folder} was started; restore it, or start a new run"
                )
    # Whether a resumed run's are what they were was asked before they ran.
    return files | hashes(settings.run.plugin)


def _announce(run: Run, settings: Settings, table, world: World, precision: Precision, steps: int) -> None:
    """Say what is about to happen."""
    on = f"{device_name(world.device)}, {world.size} process(es), {precision.name}"
    run.log(f"device      {on}, torch {torch.__version__}")
    run.log(f"results     {run.folder}")
    run.log(
        f"training    {settings.model.objective}, at most {settings.training.epochs} epochs of {steps:,} steps, "
        f"batch {settings.training.batch_size}, seed {settings.training.seed}"
    )
    width = max(len(row["module"]) for row in table)
    run.log(f"{'module':{width}}  {'':12}  {'parameters':>12}  learning rate")
    for row in table:
        rate = f"{row['lr']:g}" if row["lr"] is not None else "-"
        run.log(f"{row['module']:{width}}  {row['what']:12}  {row['parameters']:>12,}  {rate}")
    trainable, total = parameter_totals(table)
    run.log(f"{'trainable':{width}}  {'':12}  {trainable:>12,}  of {total:,} ({trainable / total:.2%})")


def _tensorboard(settings: Settings, run: Run):
    if not (settings.run.tensorboard and run.is_main):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TransrecError("--tensorboard: pip install tensorboard first") from error
    with about_file(run.folder / "tensorboard"):
        return SummaryWriter(run.folder / "tensorboard")
