"""Entry points of the scripts: parse the command line, prepare, train and write the result."""

import copy
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from transrec.assembly import (
    apply_method,
    build_recommender,
    checkpoint_file,
    describe,
    encoder_warnings,
    load_start,
    parameters_left_out,
    rounding_suffix,
    stored_states,
    tower_of,
)
from transrec.caching import (
    OUTPUT,
    StateCache,
    constant_blocks,
    replace_tower,
    structure,
    token_lengths,
    weights_digest,
    why_not_constant,
)
from transrec.command import reporting, resume_command
from transrec.data.batches import TrainingBatches
from transrec.data.dataset import Dataset, load_dataset
from transrec.data.features import BackboneFeatures, Features, MultimodalFeatures, keep_padding
from transrec.data.groups import use_one_group
from transrec.data.states import TOKENS, Provenance, StateFeatures, StateFile, TokenStateFeatures
from transrec.errors import (
    FileError,
    Interrupted,
    MemoryShortage,
    TransrecError,
    about_memory,
    printable,
    reported_error,
    warn,
)
from transrec.methods import TrainableGroup
from transrec.modalities import BackboneModality, Modality
from transrec.models.backbone import recompute_blocks
from transrec.models.recommender import Recommender
from transrec.models.towers import BackboneTower, backbone_towers
from transrec.paths import default_runs_folder, file_sha256
from transrec.plugins import plugin_hashes
from transrec.settings import Settings, digest, parse, result_options
from transrec.tracking import Trackers
from transrec.training import checkpoint, distributed
from transrec.training.compiling import about_compiler, check_compiler, compile_encoders
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator
from transrec.training.launcher import launch
from transrec.training.precision import Precision
from transrec.training.profiler import device_name, environment, parameter_table, parameter_totals
from transrec.training.ranks import target_ranks, write_ranks
from transrec.training.run import Run, read_options
from transrec.training.sharding import check_sharding, shard
from transrec.training.threads import considerate
from transrec.training.trainer import Optimization, Records, Trainer

__all__ = ["adapt", "execute", "parse", "pretrain"]

LESS_MEMORY = (
    "free some, use a smaller backbone, give fewer --title_tokens, or, for cached hidden states, --cache_device disk"
)


def pretrain(**defaults: Any) -> None:
    """Run a pretraining script: train everything on a source domain. `defaults` are values by flag."""
    adapt("full", **defaults)


def adapt(method: str, **defaults: Any) -> None:
    """Run an adaptation script: apply `method` on a target domain. `defaults` are values by flag.

    The process exits as described in `transrec.command.reporting`.
    """
    _command_line(method, defaults, execute)


def _command_line(method: str, defaults: dict[str, Any], action: Callable[[Settings], Any]) -> None:
    try:
        with reporting():
            settings = parse(sys.argv[1:], method, defaults)
            launch(settings.run.nproc)
            action(settings)
    finally:
        distributed.stop()


def cache(**defaults: Any) -> None:
    """Run the caching script: compute the hidden states of a dataset and exit."""

    def make(settings: Settings) -> None:
        world = distributed.start(settings.run.device, settings.run.deterministic, settings.run.timeout)
        with world.naming_silent_ranks(), considerate():
            dataset = read_dataset(settings)
            precision = Precision(settings.training.precision, world.device)
            log = (lambda text: print(printable(text))) if world.is_main else lambda text: None
            cache = _state_cache(settings, dataset, world, precision, log)
            features = _features(settings, dataset, _item_sources(settings, dataset, world, precision), cache)
            if not stored_states(settings.plan):
                recommender, _, structures = _adapted(settings, dataset)
                features = _cache_constant_states(settings, recommender, structures, features, cache)
            for part in _parts(features):
                if isinstance(part, StateFeatures):
                    log(f"cached      {part.file.path}")

    _command_line("iisan", {"cached": "yes", "state_dtype": "fp16"} | defaults, make)


def execute(settings: Settings) -> dict[str, Any]:
    """Execute a run to its end and return the content of result.json.

    Raises:
        TransrecError: invalid input, before training starts; or training that diverged.
        Interrupted: stopped by a signal, after saving.
    """
    started = datetime.now()
    world = distributed.start(settings.run.device, settings.run.deterministic, settings.run.timeout)
    with world.naming_silent_ranks(), considerate():
        folder = settings.run.run_folder or _default_folder(settings, started, world)
        with (
            closing(Run(folder, world.is_main, resume=bool(settings.run.resume))) as run,
            Trackers(run.folder) as trackers,
        ):
            return _run(settings, run, world, started, trackers)


def load_best(folder: str | Path, settings: Settings) -> tuple[Recommender, dict[str, list[tuple]]]:
    """Return the recommender of a finished run at its best epoch, in eval mode on the CPU, and backbone structures.

    The recommender is built as in the run: the backbones, then the run's own --checkpoint if it had one, then the
    method, then the weights that the run trained. The structures are those of the backbones, by modality, before the
    method was applied.

    Raises TransrecError if the run, or the base that it needs, is missing or has changed.
    """
    plan = settings.plan
    path = checkpoint_file(folder)
    tensors, description = checkpoint.read(path)
    # A run that trained all weights needs no base.
    needs_base = bool(frozen := description.base.frozen_sha256)
    recommender = build_recommender(plan, description.item_count, needs_base, description.sizes)
    if plan.checkpoint and needs_base:
        load_start(recommender, plan)
    structures = _structures(recommender)
    apply_method(recommender, plan)
    checkpoint.load_into(recommender, path, tensors, frozen)
    return recommender.eval(), structures


def item_reader(
    recommender: Recommender,
    structures: dict[str, list[tuple]],
    settings: Settings,
    dataset: Dataset,
    world: World,
    files: Mapping[str, str],
) -> tuple[Recommender, Features]:
    """Return a recommender that encodes the items 1..n of a dataset as the run did, and the features that it reads.

    Backbones that the run ran only once per item are not run again if their states are still stored. The returned
    recommender shares all weights with the given one, but its item encoder is a copy, so that the given recommender
    keeps its backbones.

    Args:
        recommender, structures: the results of `load_best`, on the world's device.
        files: the SHA-256 of files that must not have changed, by path.

    Raises TransrecError if the content that items are read by is missing from the dataset, damaged, or changed.
    """
    encoder = recommender.item_encoder
    shared = {id(tensor): tensor for tensor in (*encoder.parameters(), *encoder.buffers())}
    reader = Recommender(copy.deepcopy(encoder, shared), recommender.user_encoder, recommender.objective).eval()
    precision = Precision(settings.training.precision, world.device)
    cache = _state_cache(settings, dataset, world, precision, lambda text: None)
    sources = _item_sources(settings, dataset, world, precision)
    for path, now in sources.files.items():
        if not _is_same(files.get(path, now), now):
            raise TransrecError(f"{path}: has changed since the run was trained on it; restore it")
    features = _features(settings, dataset, sources, cache)
    return reader, _cache_constant_states(settings, reader, structures, features, cache)


def _run(settings: Settings, run: Run, world: World, started: datetime, trackers: Trackers) -> dict[str, Any]:
    trainer = None
    try:
        with about_memory("preparing the run", LESS_MEMORY):
            trainer, table = _prepare(settings, run, world, trackers)
        return _train(settings, run, world, started, trainer, table)
    except Interrupted as stop:
        if run.has_begun:
            saved = f"{trainer.saved} is saved" if trainer and trainer.saved else "no step is saved yet"
            stop.advice = stop.advice or f"{saved}; continue with: {_resume_command(settings, run, world)}"
            with suppress(FileError):
                run.note(f"stopped by {stop}: {stop.advice}")
        raise
    except Exception as error:
        failure = reported_error(error)
        if run.has_begun and isinstance(failure, FileError | MemoryShortage):
            command = _resume_command(settings, run, world)
            raise type(failure)(f"{failure}; the run continues with: {command}") from error
        raise


def _resume_command(settings: Settings, run: Run, world: World) -> str:
    return resume_command(run.folder, world.size, settings.run.plugin)


def _train(
    settings: Settings, run: Run, world: World, started: datetime, trainer: Trainer, table: list[dict[str, Any]]
) -> dict[str, Any]:
    with distributed.only_deterministic_algorithms(), about_compiler():
        outcome = trainer.fit()
    trainable, total = parameter_totals(table)
    result = {
        "method": settings.method,
        "item_tower": settings.model.item_tower,
        "name": settings.name,
        "dataset": Path(settings.data.dataset).name,
        **outcome,
        **(_baselines(settings, run, trainer) if settings.run.test else {}),
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
    trainer.trackers.finish(result)
    if not settings.run.keep_state:
        trainer.drop_optimizer()
    names = ("test", "popularity") if settings.run.test else ("validation",)
    rankings = {name: result[name] for name in names} | result.get("baselines", {})
    for name, scores in rankings.items():
        run.log(f"{name:11} " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    if "test_intervals" in result:
        bounds = (f"{name} {low:.4f}-{high:.4f}" for name, (low, high) in result["test_intervals"].items())
        run.log(f"{'of all':11} 95 % intervals: {'  '.join(bounds)}")
    if settings.run.test and result["test"]["HR@10"] < result["popularity"]["HR@10"]:
        run.log("warning     ranks below popularity: train longer, or at other learning rates")
    run.log(f"result      {run.folder / 'result.json'}")
    return result


def _baselines(settings: Settings, run: Run, trainer: Trainer) -> dict[str, Any]:
    """Return test metrics of the baselines without training. Their ranks are saved like those of the run."""
    evaluator = trainer.evaluator
    parts = [] if backbone_towers(trainer.recommender.item_encoder.towers) else _parts(evaluator.features)
    metrics = {}
    for choice in settings.choices["baselines"]:
        scorer = choice.build().fit(evaluator.split, parts, evaluator.world)
        if scorer is not None:
            ranking = evaluator.rank_by(scorer, "test")
            if run.is_main:
                ranks = target_ranks(evaluator.split, "test", ranking.ranks, ranking.margins)
                write_ranks(run.folder, "test", ranks, choice.name)
            metrics[choice.name] = evaluator.summarise(ranking)
    return {"popularity": metrics.pop("popularity"), "baselines": metrics}


def _prepare(settings: Settings, run: Run, world: World, trackers: Trackers) -> tuple[Trainer, list[dict[str, Any]]]:
    """Do everything before the first step, including all checks; return the trainer and the table of parameters."""
    run.log(f"{settings.name}, on {settings.data.dataset}")
    if settings.training.compile:
        check_compiler(world.device)
    precision = Precision(settings.training.precision, world.device)
    check_sharding(settings.training, world, precision)
    dataset = read_dataset(settings)
    run.log(f"data        {dataset.summary}")
    cache = _state_cache(settings, dataset, world, precision, run.log)
    sources = _item_sources(settings, dataset, world, precision)
    files = _data_files(run, settings, dataset, sources.files)
    features = _features(settings, dataset, sources, cache)
    recommender, groups, structures = _adapted(settings, dataset)
    # Describe the recommender with its backbones: the files of a run do not depend on what is computed once.
    description = describe(settings.plan, recommender, result_options(settings.as_dict()))
    table = parameter_table(recommender, groups, parameters_left_out(settings.plan))
    if recommender.objective.sampling.catalogue:
        _check_constant(settings, recommender, structures, len(dataset.split.item_rows))
    features = _cache_constant_states(settings, recommender, structures, features, cache)
    if settings.training.shard:
        groups = shard(recommender, groups, world)
        # All ranks must call a backbone equally often, but the number of length groups in a batch differs by rank.
        use_one_group(features)
    recommender.to(world.device)
    if settings.training.gradient_checkpointing:
        _checkpoint_gradients(recommender, run.log)
    if settings.training.compile:
        compile_encoders(recommender)

    objective = recommender.objective
    batches = TrainingBatches(
        dataset.split,
        settings.training.batch_size,
        negatives=objective.negatives,
        last_only=objective.last_only,
        seed=settings.training.seed,
        rank=world.rank,
        ranks=world.size,
        pieces=settings.training.accumulate,
        sampling=objective.sampling,
    )
    if world.is_main:
        trackers.open(settings.choices["tracker"])
    metrics = [choice.build() for choice in settings.choices["metrics"]]
    evaluator = Evaluator(dataset.split, features, settings.evaluation, world, precision, metrics)
    trainer = Trainer(
        recommender,
        groups,
        batches,
        evaluator,
        Optimization(settings.training, settings.choice("optimizer").build(), settings.choice("schedule").build()),
        Records(run, description, trackers, settings.run.save_steps, settings.run.profile, settings.run.test),
    )
    _announce(run, settings, table, world, precision, len(batches))
    for modality in settings.modalities.values():
        modality.announce(run.log, warn if world.is_main else lambda text: None)
    for warning in encoder_warnings(settings.plan) if world.is_main else ():
        warn(warning)
    if settings.run.resume and trainer.resume():
        run.log(f"resumed     epoch {trainer.state.epoch}, step {trainer.state.step}")
    # From here on, the folder holds a run; a start that failed earlier can simply be repeated.
    options = settings.as_dict() | {"output": str(run.folder), "resume": None, "accept_edits": False, "files": files}
    run.write_options(options | {"set_by": settings.set_by, "digest": digest(options)})
    return trainer, table


def _checkpoint_gradients(recommender: Recommender, log: Callable[[str], None]) -> None:
    """Recompute the blocks of a backbone in the backward pass if anything trains inside it."""
    trained = [tower for tower in recommender.item_encoder.towers if tower.trains_inside]
    for tower in trained:
        recompute_blocks(tower.backbone)
    if not trained:
        log("memory      --gradient_checkpointing changes nothing: nothing trains inside a backbone")


def _adapted(settings: Settings, dataset: Dataset) -> tuple[Recommender, list[TrainableGroup], dict[str, list[tuple]]]:
    """Return the recommender with its method, what trains, and each backbone's structure without the method."""
    recommender = build_recommender(settings.plan, dataset.split.item_count)
    if settings.run.checkpoint:
        load_start(recommender, settings.plan)
    structures = _structures(recommender)
    return recommender, apply_method(recommender, settings.plan), structures


def _structures(recommender: Recommender) -> dict[str, list[tuple]]:
    return {tower.modality: structure(tower.backbone) for tower in backbone_towers(recommender.item_encoder.towers)}


def read_dataset(settings: Settings, with_times: bool = False) -> Dataset:
    """Read and split the dataset of a run. `with_times` and errors are those of `load_dataset`."""
    data = settings.data
    dataset = load_dataset(data.dataset, data.max_seq_len, data.min_seq_len, data.splitting, data.files, with_times)
    return dataset.with_user_samples(data.user_fraction, data.eval_users, data.subset_seed)


def _parts(features: Features) -> list[Features]:
    return features.parts if isinstance(features, MultimodalFeatures) else [features]


def _joined(parts: list[Features]) -> Features:
    return MultimodalFeatures(parts) if len(parts) > 1 else parts[0]


def _state_cache(settings: Settings, dataset: Dataset, world: World, precision: Precision, log) -> StateCache:
    cache_folder = settings.data.state_cache
    folder = Path(cache_folder) if cache_folder else dataset.catalog.path.parent / ".transrec"
    return StateCache(folder, world, precision, log)


class _ItemSources(NamedTuple):
    """What the items of a run are read from.

    Attributes:
        parts: features of each modality; of all items in the items file if stored states are to be read instead.
        provenances: the provenance of the stored states that are read instead, by modality.
        files: hashes, by path, of the modalities' files and of backbones that are not part of the recommender.
    """

    parts: dict[str, Features]
    provenances: dict[str, Provenance]
    files: dict[str, str]


def _item_sources(settings: Settings, dataset: Dataset, world: World, precision: Precision) -> _ItemSources:
    """Return what items are read from. Nothing is computed yet, so the hashes can be checked first."""
    stored = stored_states(settings.plan)
    sources = _ItemSources({}, {}, {})
    for name, modality in settings.modalities.items():
        rows = np.arange(len(dataset.catalog.ids)) if name in stored else dataset.split.item_rows
        part = sources.parts[name] = modality.features(dataset, rows, world)
        sources.files.update(modality.files(part))
        if name in stored:
            provenance = sources.provenances[name] = _provenance(settings, modality, part, stored[name], precision)
            sources.files[weights_key(modality)] = provenance.weights
    return sources


def _features(settings: Settings, dataset: Dataset, sources: _ItemSources, cache: StateCache) -> Features:
    """Return the features of the items 1..n; stored states are computed if they are missing."""
    parts = dict(sources.parts)
    for name, provenance in sources.provenances.items():
        shape = (len(dataset.catalog.ids), len(provenance.states), settings.modalities[name].config.hidden_size)
        file = cache.states(provenance, shape, parts[name], partial(tower_of, settings.plan, name))
        parts[name] = StateFeatures(file, dataset.split.item_rows, cache.world.device, settings.data.cache_device)
    return _joined(list(parts.values()))


def weights_key(modality: Modality) -> str:
    """Return the key of a backbone's weights among the files of a run that reads stored states of it."""
    return f"{modality.encoder} ({modality.name} encoder)"


def _cache_constant_states(
    settings: Settings,
    recommender: Recommender,
    structures: dict[str, list[tuple]],
    features: Features,
    cache: StateCache,
) -> Features:
    """Return the features of the towers, with stored states for constant backbones, and change the towers accordingly.

    A tower whose backbone is constant is replaced by one that reads the stored states. If only the first blocks are
    constant, the tower reads the states of all tokens that the next block takes as its input.

    Args:
        structures: the structure of each backbone before the method was applied.
        features: the features of the unchanged towers, for the items 1..n.

    Raises TransrecError with --cached yes if a backbone has no constant block.
    """
    data = settings.data
    reads_padding = settings.choice("method").entry.reads_padding(settings.method_options)
    if reads_padding:
        keep_padding(features)
    if data.cached == "no":
        return features
    parts = []
    for tower, part in zip(list(recommender.item_encoder.towers), _parts(features), strict=True):
        if tower.backbone is not None:
            why_not = why_not_constant(tower, structures[tower.modality])
            cached_states = partial(_states_of, settings, tower, part, cache)
            if not why_not:
                # If a method has taken over the projection of a tower, it reads the tower's separate states.
                states = OUTPUT if tower.projection is not None else tower.states
                shape = (len(part), 1 if states == OUTPUT else len(states), tower.width)
                part = StateFeatures(
                    cached_states(states, shape), np.arange(len(part)), cache.world.device, data.cache_device
                )
                replace_tower(recommender, tower)
            elif not reads_padding and (
                first := constant_blocks(tower.to(cache.world.device), structures[tower.modality], part)
            ):
                lengths = token_lengths(part, first.tokens)
                file = cached_states(f"{TOKENS}{first.count}", (int(lengths.sum()), 1, tower.width))
                part = TokenStateFeatures(file, lengths, first.remaining_inputs, cache.world.device, data.cache_device)
                tower.resume_at(first.count, first.extra_outputs)
            elif data.cached == "yes":
                raise TransrecError(f"--cached yes: {why_not}, so there is nothing to compute once; use --cached auto")
        parts.append(part)
    return _joined(parts)


def _states_of(
    settings: Settings,
    tower: BackboneTower,
    features: BackboneFeatures,
    cache: StateCache,
    states: list[int] | str,
    shape: tuple[int, int, int],
) -> StateFile:
    """Return the file of the given states of all items in `features`, which is computed if it is missing."""
    provenance = _provenance(settings, settings.modalities[tower.modality], features, states, cache.precision)
    file = cache.states(provenance, shape, features, lambda: tower)
    what = f"blocks 1 to {states.removeprefix(TOKENS)}, " if str(states).startswith(TOKENS) else ""
    cache.log(f"computed    {tower.modality}: {what}once for {len(features):,} items, read from {file.path}")
    return file


def _check_constant(
    settings: Settings, recommender: Recommender, structures: dict[str, list[tuple]], item_count: int
) -> None:
    """Raise TransrecError if a backbone would have to encode the entire catalogue in every step."""
    for tower in recommender.item_encoder.towers:
        if tower.backbone is None:
            continue
        why = why_not_constant(tower, structures[tower.modality])
        if why or settings.data.cached == "no":
            raise TransrecError(
                f"--objective {settings.model.objective}: scores all {item_count:,} items in every step, and the "
                f"{tower.modality} backbone would have to encode them each time ({why or '--cached no'}); use "
                f"--objective in_batch or sampled_softmax, or a method that trains no backbone, such as frozen"
            )


def _provenance(
    settings: Settings,
    modality: BackboneModality,
    features: BackboneFeatures,
    states: list[int] | str,
    precision: Precision,
) -> Provenance:
    """Return the provenance of the given states of all items in `features`."""
    start, seed = settings.run.checkpoint, settings.training.seed
    weights = weights_digest(modality.encoder, modality.config, seed if settings.model.random_backbone else None)
    return Provenance(
        modality=modality.name,
        model_type=modality.config.model_type,
        weights=weights + rounding_suffix(settings.plan, modality.name),
        checkpoint=file_sha256(checkpoint_file(start)) if start else None,
        inputs=features.digest,
        preprocessing=modality.preprocessing,
        pooling=modality.pooling,
        states=states,
        dtype=settings.data.state_dtype,
        precision=precision.name,
        about={"encoder": modality.encoder, "dataset": settings.data.dataset}
        | ({"checkpoint": start} if start else {}),
    )


def _default_folder(settings: Settings, started: datetime, world: World) -> Path:
    name = f"{started:%Y%m%d-%H%M%S}-{Path(sys.argv[0]).stem}-{Path(settings.data.dataset).name}"
    if world.size > 1:
        names = [name]
        torch.distributed.broadcast_object_list(names)
        name = names[0]
    return default_runs_folder() / name


def _data_files(run: Run, settings: Settings, dataset: Dataset, item_files: dict[str, str]) -> dict[str, str]:
    """Return the hash of each data file and plugin. Raises TransrecError if a resumed run's data have changed.

    Args:
        item_files: hashes of what items are read from, apart from the dataset's own files; see `_ItemSources`.
    """
    files = dataset.hashes() | item_files
    if settings.run.resume and (run.folder / "options.json").exists():
        before = read_options(run.folder).get("files", files)
        encoders = {weights_key(settings.modalities[name]) for name in stored_states(settings.plan)}
        if not encoders <= before.keys():
            # Earlier releases did not record what stored states are computed from.
            before = item_files | before
        for path, digest in files.items():
            moved = path not in before and any(_is_same(known, digest) for known in before.values())
            if not moved and not _is_same(before.get(path), digest):
                raise TransrecError(
                    f"{path}: has changed since {run.folder} was started; restore it, or start a new run"
                )
    # The plugins of a resumed run were checked for changes before they were executed.
    return files | plugin_hashes(settings.run.plugin)


def _is_same(recorded: str | None, now: str) -> bool:
    """Return whether a file has the recorded hash; of image stores, earlier releases recorded the first part alone."""
    return recorded is not None and now in (recorded, f"{recorded}-{now.rpartition('-')[2]}")


def _announce(run: Run, settings: Settings, table, world: World, precision: Precision, steps: int) -> None:
    """Log the device, the settings and the parameters that the run is about to train."""
    hardware = f"{device_name(world.device)}, {world.size} process(es), {precision.name}"
    run.log(f"device      {hardware}, torch {torch.__version__}")
    run.log(f"results     {run.folder}")
    run.log(
        f"training    {settings.model.objective}, at most {settings.training.epochs} epochs of {steps:,} steps, "
        f"batch {settings.training.batch_size}, seed {settings.training.seed}"
    )
    for rule in dict.fromkeys(settings.set_by.values()):
        values = (
            f"{name} {_flag_text(value)}"
            for name, value in settings.non_defaults.items()
            if settings.set_by.get(name) == rule
        )
        run.log(f"settings    {rule}: {', '.join(values)}")
    width = max(len(row["module"]) for row in table)
    run.log(f"{'module':{width}}  {'':12}  {'parameters':>12}  learning rate")
    for row in table:
        rate = f"{row['lr']:g}" if row["lr"] is not None else "-"
        run.log(f"{row['module']:{width}}  {row['what']:12}  {row['parameters']:>12,}  {rate}")
    trainable, total = parameter_totals(table)
    run.log(f"{'trainable':{width}}  {'':12}  {trainable:>12,}  of {total:,} ({trainable / total:.2%})")


def _flag_text(value: Any) -> str:
    """Return a flag's value in the form that the command line accepts."""
    values = value if isinstance(value, list) else [value]
    return " ".join(str(item).lower() if isinstance(item, bool) else str(item) for item in values)
