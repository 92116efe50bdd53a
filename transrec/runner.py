"""What scripts call: parse the command line, build the recommender, train, and write the result."""

import argparse
import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

from transrec import interop, methods
from transrec.data.batches import TrainingBatches
from transrec.data.catalog import IdFeatures, TextFeatures, cached_tokens
from transrec.data.dataset import Dataset, find_file, load_dataset
from transrec.errors import TransrecError
from transrec.methods import MethodOptions, TrainableGroup
from transrec.models import backbone
from transrec.models.items import IdItemEncoder, TextItemEncoder
from transrec.models.objectives import OBJECTIVES
from transrec.models.recommender import Recommender
from transrec.models.sequence import SASRec
from transrec.options import DataOptions, EvaluationOptions, ModelOptions, RunOptions, TrainingOptions
from transrec.paths import default_runs_folder, file_sha256, make_folder, resolve
from transrec.training import checkpoint, distributed
from transrec.training.distributed import World
from transrec.training.evaluation import Evaluator
from transrec.training.precision import Precision
from transrec.training.profiler import device_name, environment, parameter_table
from transrec.training.run import Run, read_options
from transrec.training.trainer import Interrupted, Trainer

SECONDS_FOR_MAIN_TO_SPEAK = 3
GROUPS = (DataOptions, ModelOptions, TrainingOptions, EvaluationOptions, RunOptions)
# What a resumed run may be given anew without changing its numbers up to here.
MAY_CHANGE = {
    *("epochs", "patience", "output", "resume", "save_steps", "tensorboard", "cache_dir"),
    *("nproc", "device", "deterministic", "eval_memory", "eval_batch"),
}


@dataclass(frozen=True)
class Settings:
    """All options of one run."""

    method: str
    data: DataOptions
    model: ModelOptions
    training: TrainingOptions
    evaluation: EvaluationOptions
    run: RunOptions
    method_options: MethodOptions

    def as_dict(self) -> dict[str, Any]:
        groups = (self.data, self.model, self.training, self.evaluation, self.run, self.method_options)
        return {"method": self.method} | {name: value for group in groups for name, value in group.as_dict().items()}


def pretrain(**defaults: Any) -> None:
    """Command line of a pretraining script: train everything on a source domain. `defaults` are flags by name."""
    adapt("full", **defaults)


def adapt(method: str, **defaults: Any) -> None:
    """Command line of an adaptation script: `method` on a target domain. `defaults` are flags by name.

    Leaves with status 0, 2 after a user's mistake, or 128 + the signal that stopped it.
    """
    try:
        settings = parse(sys.argv[1:], method, defaults)
        distributed.relaunch(settings.run.nproc)
        execute(settings)
    except TransrecError as error:
        if rank := int(os.environ.get("RANK", 0)):
            # What went wrong everywhere is the main process's to say; torchrun ends the others when that one leaves.
            time.sleep(SECONDS_FOR_MAIN_TO_SPEAK)
            print(f"process {rank}: ", end="", file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        sys.exit(128 + stop.signal_number)
    finally:
        distributed.stop()


def parse(arguments: list[str], method: str, defaults: dict[str, Any]) -> Settings:
    """Settings from the command line over a resumed run's own options over the script's `defaults`.

    Raises TransrecError for an unknown method, a value out of range, or a flag that contradicts the resumed run.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--method")
    first.add_argument("--resume", nargs="?", const="")
    first.add_argument("--output")
    early, _ = first.parse_known_args(arguments)
    stored: dict[str, Any] = {}
    resumed = (early.resume or early.output) if early.resume is not None else None
    if early.resume or (resumed and (resolve(resumed) / "options.json").exists()):
        stored = read_options(resolve(resumed))
    chosen = early.method or stored.get("method", method)

    parser = HfArgumentParser([*GROUPS, methods.get(chosen).Options], allow_abbrev=False)
    parser.add_argument("--method", default=chosen, help=f"The method: {', '.join(methods.names())}.")
    known = {action.dest for action in parser._actions} - {"resume", "output"}
    unknown = set(defaults) - known
    if unknown and chosen == method:
        raise TypeError(f"defaults that are no flags of method {method}: {sorted(unknown)}")
    parser.set_defaults(**{k: v for k, v in (defaults | stored).items() if k in known})
    *groups, method_options, _, rest = parser.parse_args_into_dataclasses(
        args=arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        parser.error(f"unknown: {' '.join(rest)}; --help lists the flags")
    settings = Settings(chosen, *groups, method_options)
    if not settings.data.dataset:
        raise TransrecError("--dataset is missing: give the folder of the dataset")
    settings = _with_absolute_paths(settings)
    now = settings.as_dict()
    if changed := [k for k, v in stored.items() if k in now and k not in MAY_CHANGE and now[k] != v]:
        differences = ", ".join(f"--{k} {now[k]} (was {stored[k]})" for k in changed)
        raise TransrecError(f"{resumed}: cannot be resumed with {differences}; leave these out, or start a new run")
    return settings


def _with_absolute_paths(settings: Settings) -> Settings:
    """The same settings, meaning the same whatever folder they are read from later."""

    def changed(options, **paths):
        return dataclasses.replace(options, **{name: str(path) for name, path in paths.items() if path})

    data, model, run = settings.data, settings.model, settings.run
    folder = resolve(data.dataset)
    return dataclasses.replace(
        settings,
        data=changed(
            data,
            dataset=folder,
            users_file=data.users_file and find_file(folder, "users", data.users_file),
            items_file=data.items_file and find_file(folder, "items", data.items_file),
            cache_dir=data.cache_dir and resolve(data.cache_dir),
        ),
        model=changed(model, text_encoder=backbone.find_backbone(model.text_encoder)),
        run=changed(run, checkpoint=run.checkpoint and resolve(run.checkpoint)),
    )


def execute(settings: Settings) -> dict[str, Any]:
    """Run to the end and return what result.json holds.

    Raises:
        TransrecError: bad input, before training starts; or training that diverged.
        Interrupted: stopped by a signal, after saving.
    """
    started = datetime.now()
    # One bar for each long step of ours is enough.
    disable_progress_bar()
    world = distributed.start(settings.run.device, settings.run.deterministic)
    folder = settings.run.run_folder or _default_folder(settings, started, world)
    run = Run(folder, world.is_main, resume=bool(settings.run.resume))
    try:
        trainer, table = _prepare(settings, run, world)
    except TransrecError:
        run.discard()
        raise
    try:
        outcome = trainer.fit()
    except Interrupted as stop:
        run.log(f"stopped by {stop} and saved; continue with --resume {run.folder}")
        raise
    result = {
        "method": settings.method,
        "dataset": Path(settings.data.dataset).name,
        **outcome,
        "popularity": trainer.evaluator.popularity("test"),
        "trainable_parameters": sum(row["parameters"] for row in table if row["lr"] is not None),
        "total_parameters": sum(row["parameters"] for row in table),
        "parameters": table,
        "checkpoint_bytes": run.best.stat().st_size,
        "precision": trainer.precision.name,
        "seed": settings.training.seed,
        "wall_seconds": (datetime.now() - started).total_seconds(),
        "environment": environment(world.device, world.size),
    }
    run.write_result(result)
    for name, metrics in (("test", result["test"]), ("popularity", result["popularity"])):
        run.log(f"{name:11} " + "  ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    run.log(f"result      {run.folder / 'result.json'}")
    return result


def _prepare(settings: Settings, run: Run, world: World) -> tuple[Trainer, list[dict[str, Any]]]:
    """All that comes before the first step, every check included: the trainer, and the table of what trains."""
    run.log(f"{settings.method} on {settings.data.dataset}")
    data = settings.data
    dataset = load_dataset(data.dataset, data.max_seq_len, data.min_seq_len, data.users_file, data.items_file)
    run.log(f"data        {dataset.summary}")
    files = _data_files(run, settings, dataset)
    features = _features(settings, dataset, world)
    recommender = build_recommender(settings, dataset.split.item_count)
    if settings.run.checkpoint:
        load_start(recommender, settings)
    groups = apply_method(recommender, settings)
    recommender.to(world.device)

    objective = OBJECTIVES[settings.model.objective]
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
    precision = Precision(settings.training.precision, world.device)
    evaluator = Evaluator(dataset.split, features, settings.evaluation, data.mask_history, world, precision)
    table = parameter_table(recommender, groups)
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
    )
    _announce(run, settings, table, world, precision, len(batches))
    if settings.run.resume and trainer.resume():
        run.log(f"resumed     epoch {trainer.state.epoch}, step {trainer.state.step}")
    # From here on the folder holds a run; a start that failed before can simply be repeated.
    run.write_options(settings.as_dict() | {"output": str(run.folder), "resume": None, "files": files})
    return trainer, table


def build_recommender(settings: Settings, item_count: int, load_weights: bool = True) -> Recommender:
    """A recommender before any checkpoint or method; what is drawn at random follows from the run's seed.

    Raises TransrecError for an unknown or unfit text encoder.
    """
    torch.manual_seed(settings.training.seed)
    model, data = settings.model, settings.data
    if model.item_tower == "id":
        item_encoder: nn.Module = IdItemEncoder(item_count, model.embedding_dim)
    else:
        config = backbone.load_config(model.text_encoder)
        backbone.check_text_length(config, data.title_tokens)
        drawn = model.random_backbone or not load_weights
        weights = backbone.build_backbone(config) if drawn else backbone.load_backbone(model.text_encoder)
        item_encoder = TextItemEncoder(weights, model.embedding_dim)
    user_encoder = SASRec(model.embedding_dim, data.max_seq_len, model.blocks, model.heads, model.dropout)
    objective = OBJECTIVES[model.objective]
    return Recommender(
        item_encoder,
        user_encoder,
        objective(gather=model.gather_items) if model.objective == "in_batch" else objective(),
    )


def load_start(recommender: Recommender, settings: Settings) -> None:
    """Load --checkpoint into a recommender without a method.

    Raises TransrecError when it is missing, damaged, of other sizes, or of an adapter method.
    """
    _load_plain(recommender, settings.run.checkpoint, _sizes(settings))


def _load_plain(recommender: Recommender, given: str | Path, sizes: dict[str, Any]) -> None:
    path = _checkpoint_file(given)
    if path.suffix in (".pt", ".pth", ".bin"):
        original = interop.read_original(path)
        if original.adapted:
            raise TransrecError(f"{path}: holds adapters; --checkpoint takes a recommender without any")
        checkpoint.check_sizes(path, original.sizes, sizes)
        checkpoint.load_into(recommender, path, original.tensors)
        return
    tensors, description = checkpoint.read(path)
    if "state" in description:
        raise TransrecError(f"{path}: is a run's state, which only --resume reads; give its run folder")
    base = description["base"]
    if issubclass(methods.get(description["method"]).Options, methods.InsertOptions):
        trained_on = base["checkpoint"] or "the text encoder alone"
        raise TransrecError(
            f"{path}: holds only the adapters of method {description['method']}, trained on {trained_on}; "
            f"--checkpoint takes a recommender without adapters"
        )
    checkpoint.check_sizes(path, description["sizes"], sizes)
    if base["frozen_sha256"] and base["checkpoint"]:
        _load_plain(recommender, base["checkpoint"], sizes)
    checkpoint.load_into(recommender, path, tensors, base["frozen_sha256"])


def load_run(folder: str | Path) -> Recommender:
    """The recommender of a finished run at its best epoch, in eval mode on the CPU.

    Builds it as the run did: text encoder, then the run's own --checkpoint if it had one, then the method, then what
    the run trained.

    Raises TransrecError when the run, or the base it needs, is missing or has changed.
    """
    folder = resolve(folder)
    path = _checkpoint_file(folder)
    stored = read_options(folder)
    groups = [
        options(**{f.name: stored[f.name] for f in dataclasses.fields(options) if f.name in stored})
        for options in (*GROUPS, methods.get(stored["method"]).Options)
    ]
    settings = Settings(stored["method"], *groups)
    tensors, description = checkpoint.read(path)
    base = description["base"]
    # A run that trained everything needs nothing else.
    needs_base = bool(base["frozen_sha256"])
    recommender = build_recommender(settings, description["item_count"], load_weights=needs_base)
    if settings.run.checkpoint and needs_base:
        load_start(recommender, settings)
    apply_method(recommender, settings)
    checkpoint.load_into(recommender, path, tensors, base["frozen_sha256"])
    return recommender.eval()


def apply_method(recommender: Recommender, settings: Settings) -> list[TrainableGroup]:
    """Insert the method and decide what trains."""
    choice = settings.training.train_recommender
    train_recommender = choice == "yes" or (choice == "auto" and not settings.run.checkpoint)
    return methods.apply(
        recommender,
        settings.method,
        settings.method_options,
        methods.Rates(recommender=settings.training.lr, backbone=settings.training.backbone_lr),
        train_recommender,
        {"auto": None, "on": True, "off": False}[settings.model.backbone_dropout],
    )


def describe(settings: Settings, recommender: Recommender) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    embedding = getattr(recommender.item_encoder, "embedding", None)
    return {
        "method": settings.method,
        "method_options": settings.method_options.as_dict(),
        "sizes": _sizes(settings),
        "item_count": embedding.num_embeddings - 1 if embedding is not None else 0,
        "base": {
            "text_encoder": settings.model.text_encoder if settings.model.item_tower == "text" else None,
            "checkpoint": settings.run.checkpoint,
            "frozen_sha256": checkpoint.frozen_fingerprint(recommender, set(checkpoint.trained(recommender))),
        },
    }


def _sizes(settings: Settings) -> dict[str, Any]:
    model = settings.model
    names = ("item_tower", "embedding_dim", "blocks", "heads")
    return {name: getattr(model, name) for name in names} | {"max_seq_len": settings.data.max_seq_len}


def _checkpoint_file(given: str | Path) -> Path:
    """A checkpoint from a run folder or a file. Raises TransrecError when there is none."""
    path = resolve(given)
    if path.is_dir():
        path = path / "checkpoints" / "best.safetensors"
        if not path.exists():
            raise TransrecError(f"{given}: holds no {path.relative_to(resolve(given))}; the run finished no epoch")
    if not path.exists():
        raise TransrecError(f"--checkpoint {given}: no such file or run folder")
    return path


def _features(settings: Settings, dataset: Dataset, world: World) -> TextFeatures | IdFeatures:
    if settings.model.item_tower == "id":
        return IdFeatures(world.device)
    data = settings.data
    cache_dir = Path(data.cache_dir) if data.cache_dir else None
    if cache_dir and world.is_main:
        make_folder(cache_dir, "--cache_dir")
    name = settings.model.text_encoder
    tokenizer = backbone.load_tokenizer(name)

    def tokens():
        made = cached_tokens(
            dataset.catalog, tokenizer, data.title_tokens, data.lower_case, cache_dir, progress=world.is_main
        )
        backbone.check_tokens(made.input_ids, tokenizer, backbone.load_config(name), name)
        return made

    # The main rank tokenises and fills the cache, the others read it.
    if world.is_main:
        made = tokens()
    world.barrier()
    return TextFeatures(made if world.is_main else tokens(), dataset.split.item_rows, world.device)


def _default_folder(settings: Settings, started: datetime, world: World) -> Path:
    name = f"{started:%Y%m%d-%H%M%S}-{Path(sys.argv[0]).stem}-{Path(settings.data.dataset).name}"
    if world.size > 1:
        names = [name]
        torch.distributed.broadcast_object_list(names)
        name = names[0]
    return default_runs_folder() / name


def _data_files(run: Run, settings: Settings, dataset: Dataset) -> dict[str, str]:
    """SHA-256 of each data file. Raises TransrecError when a resumed run's are not what they were."""
    files = {str(path): file_sha256(path) for path in (dataset.catalog.path, dataset.interactions.path)}
    if settings.run.resume and (run.folder / "options.json").exists():
        before = read_options(run.folder).get("files", files)
        for path, digest in files.items():
            if before.get(path) != digest:
                raise TransrecError(
                    f"{path}: has changed since {run.folder} was started; restore it, or start a new run"
                )
    return files


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
    trainable = sum(row["parameters"] for row in table if row["lr"] is not None)
    total = sum(row["parameters"] for row in table)
    run.log(f"{'trainable':{width}}  {'':12}  {trainable:>12,}  of {total:,} ({trainable / total:.2%})")


def _tensorboard(settings: Settings, run: Run):
    if not (settings.run.tensorboard and run.is_main):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TransrecError("--tensorboard: pip install tensorboard first") from error
    return SummaryWriter(run.folder / "tensorboard")
