"""Every flag once: its name, help, default and check. Flags of a method, an objective, ... live with it."""

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from transrec.data.dataset import Files
from transrec.data.splits import Splitting
from transrec.errors import TransrecError
from transrec.models.spread import bounds
from transrec.paths import resolve

MaskHistory = Literal["seen", "none", "seen_but_target"]


def flag(default: Any, help: str, **argument: Any) -> Any:
    """A dataclass field that is also a command-line flag.

    Args:
        argument: goes to argparse; but `absolute` makes of a path, or of each of a list, the one that means the same
            whatever the working directory, and `decides=False` says that no number of a run depends on the flag: a
            resumed run may be given another value.
    """
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **argument})
    return field(default=default, metadata={"help": help, **argument})


@cache
def kinds_of(options: "type[Options]") -> Mapping[str, Any]:
    """The type of each flag."""
    return get_type_hints(options)


@dataclass(frozen=True)
class Options:
    """A group of flags.

    Each class sets `_minimum`, the least value that each number of its own flags may have, and `_below`, what it must
    stay below.
    """

    _argument_group_name: ClassVar[str] = ""
    _minimum: ClassVar[dict[str, float]] = {}
    _below: ClassVar[dict[str, float]] = {}

    def __post_init__(self):
        kinds = kinds_of(type(self))
        for name, value in self.as_dict().items():
            if not _fits(value, kinds[name]):
                raise TransrecError(f"--{name} {value!r}: must be {_called(kinds[name])}")
            if isinstance(value, float) and not math.isfinite(value):
                raise TransrecError(f"--{name} {value}: must be a finite number")
        for owner in type(self).__mro__:
            for name, least in vars(owner).get("_minimum", {}).items():
                value = getattr(self, name)
                values = value if isinstance(value, list) else [value]
                if not values or not min(values) >= least:
                    raise TransrecError(f"--{name} {' '.join(map(str, values))}: must be at least {least}")
            for name, bound in vars(owner).get("_below", {}).items():
                if (value := getattr(self, name)) >= bound:
                    raise TransrecError(f"--{name} {value}: must be below {bound}")

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def absolute(self) -> Self:
        """The same options, of paths that mean the same whatever folder they are read from later."""
        paths: dict[str, Any] = {}
        for f in fields(self):
            if (absolute := f.metadata.get("absolute")) and (value := getattr(self, f.name)):
                several = isinstance(value, list)
                paths[f.name] = (
                    list(dict.fromkeys(str(absolute(one)) for one in value)) if several else str(absolute(value))
                )
        return replace(self, **paths)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The default of every flag by name."""
        return {f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(cls)}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the type that a field is annotated with."""
    of = get_args(kind)
    if get_origin(kind) is Literal:
        return value in of
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(one, of[0]) for one in value)
    if of:
        return any(_fits(value, one) for one in of)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _called(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if lists := [of for of in (kind, *get_args(kind)) if get_origin(of) is list]:
        return f"a list of {({int: 'whole numbers', str: 'texts'})[get_args(lists[0])[0]]}"
    kinds = [one for one in get_args(kind) or (kind,) if one is not type(None)]
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kinds[0]]


def _yes_or_no(value: Any) -> Any:
    """ "yes" for what says true, "no" for what says false, anything else as it is."""
    if not isinstance(value, str | bool):
        return value
    return {"true": "yes", "1": "yes", "y": "yes", "false": "no", "0": "no", "n": "no"}.get(str(value).lower(), value)


@dataclass(frozen=True)
class DataOptions(Options):
    _argument_group_name: ClassVar[str] = "data"
    _minimum: ClassVar[dict[str, float]] = {
        "eval_users": 0,
        "max_seq_len": 1,
        "min_seq_len": 3,
        "subset_seed": 0,
    }

    dataset: str | None = flag(
        None,
        "Dataset folder (required): one *users*.tsv and one *items*.tsv, or Parquet, or as dataset.json says.",
        absolute=resolve,
    )
    users_file: str | None = flag(
        None, "Interactions file of the dataset, where the folder's names do not tell which it is."
    )
    items_file: str | None = flag(None, "Items file of the dataset, where the folder's names do not tell which it is.")
    max_seq_len: int = flag(20, "L, the longest sequence that the user encoder sees; it learns as many positions.")
    min_seq_len: int = flag(5, "Drop users with fewer interactions than this.")
    split: Literal["loo", "time", "ratio", "given"] = flag(
        "loo",
        "What is trained on, validated on and tested on. loo: leave-one-out, each user's last interaction is for test "
        "and the one before it for validation; time: at two moments, alike for all users, so that no training "
        "interaction is later than a target; ratio: shares of each user's interactions; given: as the dataset's "
        "publisher has split it.",
    )
    split_at: str | None = flag(
        None,
        "Where test interactions start under --split time and ratio: a share of the interactions, as 0.9, or for time "
        "a date, as 2018-09-01 (default: 0.9).",
    )
    validate_at: str | None = flag(
        None, "Where validation interactions start under --split time and ratio, as of --split_at (default: 0.8)."
    )
    catalogue: Literal["touched", "all"] = flag(
        "touched", "Items that are ranked: those that the users kept interact with, or all that the items file lists."
    )
    user_fraction: float = flag(1.0, "Train on this fraction of the users; all users are evaluated, against all items.")
    eval_users: int = flag(
        0,
        "Evaluate so many users, drawn at random, against all items, and tell 95-percent intervals for all of them; 0: "
        "evaluate all users.",
    )
    subset_seed: int = flag(
        0,
        "Seed that draws the users of --user_fraction, and those of --eval_users; under one seed fewer of them lie "
        "within more.",
    )
    cached: Literal["auto", "yes", "no"] = flag(
        "auto",
        "Compute what the backbones give once, before the first epoch, keep it in files, and read it from there. auto: "
        "where it is constant, because nothing trains inside a backbone and its dropout is off, or nothing below its "
        "last blocks; yes: the same, and refuse to run where no block is; no: run the backbones in every step.",
        nargs="?",
        const="yes",
        off="no",
        type=_yes_or_no,
    )
    state_dtype: Literal["fp16", "fp32"] = flag("fp32", "Number format of the files of --cached.", aliases=["--dtype"])
    state_cache: str | None = flag(
        None,
        "Folder for the files of --cached (default: .transrec/ beside the items file).",
        absolute=resolve,
        decides=False,
    )
    cache_device: Literal["auto", "gpu", "cpu", "disk"] = flag(
        "auto",
        "Where training holds what --cached has computed; auto: on the GPU if it fits, else in memory if it fits, else "
        "on disk.",
        decides=False,
    )

    @property
    def files(self) -> Files:
        """Those that the folder's names do not tell."""
        return Files(self.users_file, self.items_file)

    @property
    def splitting(self) -> Splitting:
        """What decides the split, but for the lengths."""
        return Splitting(self.split, self.split_at, self.validate_at, self.catalogue)

    def __post_init__(self):
        # As options.json of earlier releases have it.
        object.__setattr__(self, "cached", _yes_or_no(self.cached))
        super().__post_init__()
        _ = self.splitting
        if self.eval_users == 1:
            raise TransrecError("--eval_users 1: one user tells nothing of the others; give more, or 0 for all")
        if not 0 < self.user_fraction <= 1:
            raise TransrecError(f"--user_fraction {self.user_fraction}: must be above 0 and at most 1")


# What --item_tower calls several modalities.
ITEM_TOWERS = {"multimodal": ["text", "image"]}


@dataclass(frozen=True)
class ModelOptions(Options):
    _argument_group_name: ClassVar[str] = "model"
    _minimum: ClassVar[dict[str, float]] = {"embedding_dim": 1, "init_std": 0}

    item_tower: str = flag(
        "text",
        "What represents an item: text (its title), image, multimodal (both), id (a learned vector), or several "
        "modalities joined by +.",
    )
    modalities: list[str] = flag([], "What items are read by; said here, it goes before --item_tower.")
    random_backbone: bool = flag(False, "Draw the backbone's weights anew instead of loading its pretrained ones.")
    protocol: Literal["strong", "published"] = flag(
        "strong",
        "Where the papers' settings rank worse than what is known today, which to take: strong, or the objective, "
        "initialisation and patience of the papers.",
    )
    init: Literal["normal", "xavier"] = flag(
        "normal",
        "How linear layers and embeddings outside the backbones start: from N(0, --init_std), or Xavier-normal, as in "
        "the papers' programs.",
    )
    init_std: float = flag(0.02, "Standard deviation of --init normal.")
    objective: str = flag("bce", "Training objective.")
    user_encoder: str = flag("sasrec", "What encodes a user from the items of a sequence.")
    embedding_dim: int = flag(64, "d, the size of item embeddings and user vectors.")
    encoder_dtype: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto",
        "Number format that the weights of frozen backbones are held in, whatever --precision computes in; what trains "
        "is fp32. auto: that of their file where a method leaves backbones as they are, which changes no number; else "
        "fp32.",
    )
    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"] = flag(
        "none",
        "How a frozen backbone larger than one GPU is spread while --cached yes computes its states: over GPUs, then "
        "host memory, then disk, as accelerate's device_map says.",
        decides=False,
    )
    max_memory: list[str] = flag(
        [],
        "What --device_map may fill of each device, as 0=20GiB cpu=8GiB; a device that is not named takes nothing, and "
        "the rest is read from the weights file when it is needed (default: what is free).",
        decides=False,
    )
    backbone_dropout: Literal["auto", "on", "off"] = flag(
        "auto", "The backbone's own dropout in training; auto: on where its weights train or the variant is published."
    )

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.read_by)) < len(self.read_by) or len(set(self.modalities)) < len(self.modalities):
            raise TransrecError(f"--modalities {' '.join(self.modalities or self.read_by)}: names one of them twice")
        bounds(self.max_memory)
        if self.max_memory and self.device_map == "none":
            raise TransrecError(f"--max_memory {' '.join(self.max_memory)}: only with --device_map")
        if self.modalities:
            joined = "+".join(self.modalities)
            names = {"+".join(of): name for name, of in ITEM_TOWERS.items()}
            object.__setattr__(self, "item_tower", names.get(joined, joined))

    @property
    def read_by(self) -> list[str]:
        """Names of the modalities that items are read by."""
        return ITEM_TOWERS.get(self.item_tower, self.item_tower.split("+"))


@dataclass(frozen=True)
class TrainingOptions(Options):
    _argument_group_name: ClassVar[str] = "training"
    _minimum: ClassVar[dict[str, float]] = {
        "epochs": 1,
        "batch_size": 1,
        "lr": 0,
        "backbone_lr": 0,
        "accumulate": 1,
        "clip_grad_norm": 0,
        "patience": 1,
        "patience_steps": 0,
        "seed": 0,
    }

    epochs: int = flag(100, "Train at most this many epochs.", decides=False)
    batch_size: int = flag(32, "Users per step, over all processes; results do not depend on the number of processes.")
    lr: float = flag(1e-4, "Learning rate of the recommender (projection and user encoder), where it trains.")
    backbone_lr: float = flag(5e-5, "Learning rate of the backbone, where it trains.")
    optimizer: str = flag("adam", "Optimiser of everything that trains.")
    schedule: str = flag("constant", "How the learning rates change from step to step.")
    accumulate: int = flag(
        1, "Split each batch into this many pieces, to save memory; in_batch then takes its candidates from one piece."
    )
    clip_grad_norm: float = flag(0.0, "Clip the gradient's norm to this; 0: do not.")
    select_by: str = flag(
        "HR@10", "Validation metric that the best epoch is chosen by, of those computed; 10 in HR@10 is a cut-off."
    )
    patience: int = flag(
        10, "Stop after this many evaluations without a better --select_by on validation.", decides=False
    )
    patience_steps: int = flag(
        1000,
        "And not before this many steps without a better one, so that short epochs do not stop a run by chance.",
        decides=False,
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "Number format of a forward pass; auto: bf16 on GPUs that have it, else fp32."
    )
    gradient_checkpointing: bool = flag(
        False,
        "Keep of each block of a backbone only its input, and compute the rest again in the backward pass: less memory "
        "for about a third more time.",
        decides=False,
    )
    shard: bool = flag(
        False,
        "Split the weights of each backbone, their gradients and their optimiser states over the processes of --nproc, "
        "for a backbone that is too large to be held by each of them.",
        decides=False,
    )
    compile: bool = flag(
        False,
        "Compile the item and the user encoder: a minute's wait, then faster steps; needs g++, or triton on a GPU.",
    )
    seed: int = flag(0, "Seed of everything random.")
    train_recommender: Literal["auto", "yes", "no"] = flag(
        "auto",
        "Whether an adapter method also trains the projection and the user encoder; auto: only when no --checkpoint "
        "gives them trained.",
    )


@dataclass(frozen=True)
class EvaluationOptions(Options):
    _argument_group_name: ClassVar[str] = "evaluation"
    _minimum: ClassVar[dict[str, float]] = {"eval_memory": 1, "eval_batch": 1}

    metrics: list[str] = flag(["hr", "ndcg", "mrr"], "Metrics that are computed; hr and ndcg always are.")
    baselines: list[str] = flag(
        ["popularity", "item_knn", "zero_shot"],
        "Rankings without training that are tested beside the run, where they can be made; popularity always is.",
        decides=False,
    )
    mask_history: MaskHistory = flag(
        "seen",
        "Items left out of a user's ranking: all seen before (a repeated target is then a miss, as in the papers), "
        "none, or all seen but the target.",
    )
    cutoffs: list[int] = flag([5, 10, 20], "k of HR@k and NDCG@k; 10 is always among them.")
    eval_memory: int = flag(64, "MiB that the scores of one block of users may take in evaluation.", decides=False)
    eval_batch: int = flag(256, "Items encoded at a time in evaluation.", decides=False)

    def __post_init__(self):
        super().__post_init__()
        if min(self.cutoffs, default=0) < 1:
            raise TransrecError(f"--cutoffs {self.cutoffs}: must be at least 1")
        object.__setattr__(self, "cutoffs", sorted({*self.cutoffs, 10}))


@dataclass(frozen=True)
class RunOptions(Options):
    _argument_group_name: ClassVar[str] = "run"
    _minimum: ClassVar[dict[str, float]] = {"nproc": 1, "save_steps": 0, "timeout": 1}

    checkpoint: str | None = flag(
        None,
        "Recommender to start from: a run folder, a .safetensors of one, or an original epoch-N.pt.",
        absolute=resolve,
    )
    output: str | None = flag(None, "Folder of the run (default: runs/DATE-TIME-SCRIPT-DATASET).", decides=False)
    resume: str | None = flag(
        None,
        "Continue the run in this folder, or in --output; flags that are not given stay as that run has them.",
        nargs="?",
        const="",
        decides=False,
    )
    accept_edits: bool = flag(
        False,
        "Resume a run whose options.json was edited by hand: it goes on with what the file says now.",
        decides=False,
    )
    save_steps: int = flag(0, "Save for --resume every so many steps too, not only after each epoch.", decides=False)
    keep_state: bool = flag(
        False,
        "Keep the optimiser's state when the run has finished: only then --resume can give it more epochs.",
        decides=False,
    )
    presets: str | None = flag(
        None,
        "File of settings by method and modality, as scripts/search.py writes one, which go before the papers'.",
        absolute=resolve,
        decides=False,
    )
    test: bool = flag(
        True,
        "Rank the test targets once training has ended, at the best epoch; a run without it can be told to later, as "
        "--resume RUN --test.",
        decides=False,
    )
    plugin: list[str] = flag(
        [],
        "Python file that adds methods, objectives, ... of your own (docs/adding); give the flag again for more files. "
        "It runs: give only files that you trust.",
        action="extend",
        absolute=resolve,
        decides=False,
    )
    timeout: int = flag(
        1800,
        "Seconds after which a process that the others of a run wait for counts as silent, and the run ends.",
        decides=False,
    )
    nproc: int = flag(1, "Processes to train in: GPUs of this machine, or CPU processes.", decides=False)
    device: str = flag(
        "auto",
        "Device to run on: auto (a GPU where there is one, Apple's too), cpu, cuda, cuda:1, mps, ...",
        decides=False,
    )
    deterministic: bool = flag(
        True, "On a GPU use only algorithms that give the same numbers each time.", decides=False
    )
    profile: bool = flag(
        False,
        "Wait for the GPU at each phase of a step, to time feed, forward, backward and step apart.",
        decides=False,
    )
    tracker: list[str] = flag(
        [],
        "Where metrics are logged besides RUN/metrics.jsonl; tensorboard needs the package of that name, and "
        "--tensorboard alone chooses it.",
        shorthands={"--tensorboard": ["tensorboard"]},
        decides=False,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.resume == "":
            if not self.output:
                raise TransrecError("--resume: say which run, as --resume RUN or with --output RUN")
            object.__setattr__(self, "resume", self.output)
        if self.resume:
            if self.output and resolve(self.output) != resolve(self.resume):
                raise TransrecError(f"--resume {self.resume} and --output {self.output} name two runs; leave one out")
            object.__setattr__(self, "output", str(resolve(self.resume)))

    @property
    def run_folder(self) -> Path | None:
        return Path(os.path.abspath(Path(self.output).expanduser())) if self.output else None
