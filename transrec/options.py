"""Flags, each defined once: name, help, default and check. Flags of a method, an objective, ... are in its module."""

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
from transrec.models.spread import memory_limits
from transrec.paths import resolve

MaskHistory = Literal["seen", "none", "seen_but_target"]


def flag(default: Any, help: str, **argument: Any) -> Any:
    """Return a dataclass field that is also a command-line flag.

    Args:
        argument: keyword arguments of argparse's `add_argument`, or some of transrec's own: `aliases`, further names of
            the flag; `off`, the value that --no_FLAG sets; `shorthands`, flags that set a certain value; `absolute`, a
            function that makes a path, or each path in a list, independent of the working directory;
            `affects_results=False` if no number of a run depends on the flag, so that a resumed run may change it.
    """
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **argument})
    return field(default=default, metadata={"help": help, **argument})


@cache
def flag_types(options: "type[Options]") -> Mapping[str, Any]:
    """Return the type of each flag by name."""
    return get_type_hints(options)


@dataclass(frozen=True)
class Options:
    """Base class of groups of flags.

    A subclass sets `_minimum`, the smallest allowed values of its own flags by name, and `_below`, values that its
    flags must stay below.
    """

    _argument_group_name: ClassVar[str] = ""
    _minimum: ClassVar[dict[str, float]] = {}
    _below: ClassVar[dict[str, float]] = {}

    def __post_init__(self):
        types = flag_types(type(self))
        for name, value in self.as_dict().items():
            if not _has_type(value, types[name]):
                raise TransrecError(f"--{name} {value!r}: must be {_type_name(types[name])}")
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
        """Return the same options with paths that mean the same in any working directory."""
        paths: dict[str, Any] = {}
        for f in fields(self):
            if (absolute := f.metadata.get("absolute")) and (value := getattr(self, f.name)):
                several = isinstance(value, list)
                paths[f.name] = (
                    list(dict.fromkeys(str(absolute(path)) for path in value)) if several else str(absolute(value))
                )
        return replace(self, **paths)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return the default of every flag by name."""
        return {f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(cls)}


def _has_type(value: Any, kind: Any) -> bool:
    """Return whether a value has the type that a field is annotated with."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return value in arguments
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if arguments:
        return any(_has_type(value, alternative) for alternative in arguments)
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if lists := [part for part in (kind, *get_args(kind)) if get_origin(part) is list]:
        return f"a list of {({int: 'whole numbers', str: 'texts'})[get_args(lists[0])[0]]}"
    kinds = [part for part in get_args(kind) or (kind,) if part is not type(None)]
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kinds[0]]


def _yes_or_no(value: Any) -> Any:
    """Return "yes" for values that mean true, "no" for values that mean false, and any other value unchanged."""
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
        "Dataset folder (required): one *users*.tsv and one *items*.tsv, Parquet files, or files that dataset.json "
        "describes.",
        absolute=resolve,
    )
    users_file: str | None = flag(
        None, "Interactions file of the dataset, if neither its name nor dataset.json identifies it."
    )
    items_file: str | None = flag(
        None, "Items file of the dataset, if neither its name nor dataset.json identifies it."
    )
    max_seq_len: int = flag(
        20, "L, the maximum length of the user encoder's input, and the number of positions that it learns."
    )
    min_seq_len: int = flag(5, "Drop users with fewer interactions than this.")
    split: Literal["loo", "time", "ratio", "given"] = flag(
        "loo",
        "How interactions are split into training, validation and test. loo: leave-one-out, each user's last "
        "interaction is for test and the one before it for validation; time: at two moments that are the same for all "
        "users, so that no training interaction is later than a target; ratio: by shares of each user's interactions; "
        "given: as the dataset's publisher split it.",
    )
    split_at: str | None = flag(
        None,
        "Start of the test interactions with --split time or ratio: a share of the interactions, such as 0.9, or for "
        "time also a date, such as 2018-09-01 (default: 0.9).",
    )
    validate_at: str | None = flag(
        None, "Start of the validation interactions with --split time or ratio, like --split_at (default: 0.8)."
    )
    catalogue: Literal["touched", "all"] = flag(
        "touched",
        "Items that are ranked. touched: those with an interaction of a user who is kept; all: all in the items file.",
    )
    user_fraction: float = flag(1.0, "Train on this fraction of the users; all users are evaluated, over all items.")
    eval_users: int = flag(
        0,
        "Evaluate this many users, drawn at random, over all items, and report 95-percent intervals for the metrics "
        "over all users; 0: evaluate all users.",
    )
    subset_seed: int = flag(
        0,
        "Seed that draws the users of --user_fraction and of --eval_users; with the same seed, a smaller sample is a "
        "subset of a larger one.",
    )
    cached: Literal["auto", "yes", "no"] = flag(
        "auto",
        "Run the backbones once, before the first epoch, and read their states from files afterwards. auto: if the "
        "states are constant, because a backbone's dropout is off and nothing trains inside it, or only in its last "
        "blocks; yes: like auto, but refuse to run if no block is constant; no: run the backbones in every step.",
        nargs="?",
        const="yes",
        off="no",
        type=_yes_or_no,
    )
    state_dtype: Literal["fp16", "fp32"] = flag(
        "fp32", "Number format of the files that --cached writes.", aliases=["--dtype"]
    )
    state_cache: str | None = flag(
        None,
        "Folder for the files that --cached writes (default: .transrec/ next to the items file).",
        absolute=resolve,
        affects_results=False,
    )
    cache_device: Literal["auto", "gpu", "cpu", "disk"] = flag(
        "auto",
        "Where training holds the states that --cached computed. auto: on the GPU if they fit, else in memory if they "
        "fit, else on disk.",
        affects_results=False,
    )

    @property
    def files(self) -> Files:
        """The data files that flags name; None for a file that is found by its name."""
        return Files(self.users_file, self.items_file)

    @property
    def splitting(self) -> Splitting:
        """The rules of the split, apart from the sequence lengths."""
        return Splitting(self.split, self.split_at, self.validate_at, self.catalogue)

    def __post_init__(self):
        # In options.json, earlier releases stored true or false.
        object.__setattr__(self, "cached", _yes_or_no(self.cached))
        super().__post_init__()
        _ = self.splitting
        if self.eval_users == 1:
            raise TransrecError("--eval_users 1: one user says nothing about the others; give more, or 0 for all")
        if not 0 < self.user_fraction <= 1:
            raise TransrecError(f"--user_fraction {self.user_fraction}: must be above 0 and at most 1")


# Names of several modalities in --item_tower.
ITEM_TOWERS = {"multimodal": ["text", "image"]}


@dataclass(frozen=True)
class ModelOptions(Options):
    _argument_group_name: ClassVar[str] = "model"
    _minimum: ClassVar[dict[str, float]] = {"embedding_dim": 1, "init_std": 0}

    item_tower: str = flag(
        "text",
        "Content that represents an item: text (its title), image, multimodal (both), id (a learned vector), or "
        "several modalities joined by +.",
    )
    modalities: list[str] = flag([], "Modalities that items are read by; they override --item_tower.")
    random_backbone: bool = flag(False, "Draw the backbone's weights at random instead of loading its pretrained ones.")
    protocol: Literal["strong", "published"] = flag(
        "strong",
        "Settings to use where better ones than the papers' are known. strong: the better ones; published: the "
        "objective, initialisation and patience of the papers.",
    )
    init: Literal["normal", "xavier"] = flag(
        "normal",
        "Initialisation of linear layers and embeddings outside the backbones. normal: N(0, --init_std); xavier: "
        "Xavier-normal, as in the papers' programs.",
    )
    init_std: float = flag(0.02, "Standard deviation for --init normal.")
    objective: str = flag("bce", "Training objective.")
    user_encoder: str = flag("sasrec", "Encoder that computes user vectors from a sequence of items.")
    embedding_dim: int = flag(64, "d, the size of item embeddings and user vectors.")
    encoder_dtype: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto",
        "Number format that the weights of frozen backbones are held in, whatever --precision computes in; weights "
        "that train are held in fp32. auto: the format of the weights file if the method leaves the backbones "
        "unchanged, which changes no number; else fp32.",
    )
    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"] = flag(
        "none",
        "How a frozen backbone larger than one GPU is spread while --cached yes computes its states: over GPUs, then "
        "host memory, then disk, as in accelerate's device_map.",
        affects_results=False,
    )
    max_memory: list[str] = flag(
        [],
        "Memory that --device_map may use on each device, such as 0=20GiB cpu=8GiB. A device that is not named is not "
        "used, and the remaining weights are read from their file when they are needed (default: all free memory).",
        affects_results=False,
    )
    backbone_dropout: Literal["auto", "on", "off"] = flag(
        "auto",
        "Dropout inside the backbone in training. auto: on if all of its weights train or the variant is published.",
    )

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.modality_names)) < len(self.modality_names) or len(set(self.modalities)) < len(self.modalities):
            raise TransrecError(
                f"--modalities {' '.join(self.modalities or self.modality_names)}: names one of them twice"
            )
        memory_limits(self.max_memory)
        if self.max_memory and self.device_map == "none":
            raise TransrecError(f"--max_memory {' '.join(self.max_memory)}: only with --device_map")
        if self.modalities:
            joined = "+".join(self.modalities)
            names = {"+".join(modalities): name for name, modalities in ITEM_TOWERS.items()}
            object.__setattr__(self, "item_tower", names.get(joined, joined))

    @property
    def modality_names(self) -> list[str]:
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

    epochs: int = flag(100, "Train at most this many epochs.", affects_results=False)
    batch_size: int = flag(32, "Users per step over all processes; results do not depend on the number of processes.")
    lr: float = flag(1e-4, "Learning rate of the recommender (projection and user encoder), if it trains.")
    backbone_lr: float = flag(5e-5, "Learning rate of the backbone, if it trains.")
    optimizer: str = flag("adam", "Optimiser of all weights that train.")
    schedule: str = flag("constant", "Schedule of the learning rates over the steps.")
    accumulate: int = flag(
        1, "Split each batch into this many pieces to save memory; candidates of in_batch then come from one piece."
    )
    clip_grad_norm: float = flag(0.0, "Clip the gradient's norm to this value; 0: do not clip.")
    select_by: str = flag(
        "HR@10", "Validation metric that selects the best epoch, one of those computed; 10 in HR@10 is a cut-off."
    )
    patience: int = flag(
        10,
        "Stop after this many evaluations without an improvement of --select_by on validation.",
        affects_results=False,
    )
    patience_steps: int = flag(
        1000,
        "Before stopping, also require this many steps without an improvement, so that short epochs do not stop a run "
        "by chance.",
        affects_results=False,
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = flag(
        "auto", "Number format of the forward pass. auto: bf16 on GPUs that support it, else fp32."
    )
    gradient_checkpointing: bool = flag(
        False,
        "Keep only the input of each block of a backbone and recompute the rest in the backward pass, which saves "
        "memory and takes about a third more time.",
        affects_results=False,
    )
    shard: bool = flag(
        False,
        "Split the weights of each backbone, their gradients and their optimiser states over the processes of --nproc, "
        "for a backbone that is too large for one process to hold.",
        affects_results=False,
    )
    compile: bool = flag(
        False,
        "Compile the item and the user encoder, for faster steps after a minute's wait; needs g++, or triton on a GPU.",
    )
    seed: int = flag(0, "Seed of the run's random numbers.")
    train_recommender: Literal["auto", "yes", "no"] = flag(
        "auto",
        "Whether an adapter method also trains the projection and the user encoder. auto: only if no --checkpoint "
        "provides trained ones.",
    )


@dataclass(frozen=True)
class EvaluationOptions(Options):
    _argument_group_name: ClassVar[str] = "evaluation"
    _minimum: ClassVar[dict[str, float]] = {"eval_memory": 1, "eval_batch": 1}

    metrics: list[str] = flag(["hr", "ndcg", "mrr"], "Metrics to compute; hr and ndcg are always computed.")
    baselines: list[str] = flag(
        ["popularity", "item_knn", "zero_shot"],
        "Rankings without training to test next to the run, if they can be computed; popularity is always tested.",
        affects_results=False,
    )
    mask_history: MaskHistory = flag(
        "seen",
        "Items left out of a user's ranking. seen: all items seen before, so that a repeated target is a miss, as in "
        "the papers; none: no items; seen_but_target: all items seen before except the target.",
    )
    cutoffs: list[int] = flag([5, 10, 20], "Values of k in HR@k and NDCG@k; 10 is always among them.")
    eval_memory: int = flag(64, "MiB for the scores of one block of users in evaluation.", affects_results=False)
    eval_batch: int = flag(256, "Number of items that evaluation encodes in one batch.", affects_results=False)

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
        "Recommender to start from: a run folder, its .safetensors file, or an epoch-N.pt of the papers' programs.",
        absolute=resolve,
    )
    output: str | None = flag(
        None, "Folder of the run (default: runs/DATE-TIME-SCRIPT-DATASET).", affects_results=False
    )
    resume: str | None = flag(
        None,
        "Continue the run in this folder, or in --output; flags that are not given keep that run's values.",
        nargs="?",
        const="",
        affects_results=False,
    )
    accept_edits: bool = flag(
        False,
        "Resume a run whose options.json was edited by hand, using the edited values.",
        affects_results=False,
    )
    save_steps: int = flag(
        0, "Save for --resume every this many steps, in addition to after each epoch.", affects_results=False
    )
    keep_state: bool = flag(
        False,
        "Keep the optimiser's state when the run has finished; without it, --resume cannot add epochs.",
        affects_results=False,
    )
    presets: str | None = flag(
        None,
        "File of settings by method and modality, as written by scripts/search.py; they override the papers' settings.",
        absolute=resolve,
        affects_results=False,
    )
    test: bool = flag(
        True,
        "Rank the test targets after training, with the best epoch; a run without it can do so later with "
        "--resume RUN --test.",
        affects_results=False,
    )
    plugin: list[str] = flag(
        [],
        "Python file that adds your own methods, objectives, ... (docs/adding); repeat the flag for more files. The "
        "file is executed, so give only files that you trust.",
        action="extend",
        absolute=resolve,
        affects_results=False,
    )
    timeout: int = flag(
        1800,
        "Seconds that the processes of a run wait for another one before it counts as silent and the run ends.",
        affects_results=False,
    )
    nproc: int = flag(
        1, "Number of training processes: one per GPU of this machine, or CPU processes.", affects_results=False
    )
    device: str = flag(
        "auto",
        "Device to run on: auto (a GPU if there is one, including Apple's), cpu, cuda, cuda:1, mps, ...",
        affects_results=False,
    )
    deterministic: bool = flag(
        True, "On a GPU, use only algorithms that give the same numbers each time.", affects_results=False
    )
    profile: bool = flag(
        False,
        "Wait for the GPU at each phase of a step, to time feed, forward, backward and step separately.",
        affects_results=False,
    )
    tracker: list[str] = flag(
        [],
        "Trackers that log metrics in addition to RUN/metrics.jsonl; tensorboard needs the package of that name, and "
        "--tensorboard is short for it.",
        shorthands={"--tensorboard": ["tensorboard"]},
        affects_results=False,
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
