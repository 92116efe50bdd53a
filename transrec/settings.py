"""The settings of a run, and reading them from the command line."""

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transrec import methods
from transrec.arguments import OptionsParser, Parser, no_such_flag
from transrec.data.dataset import find_file
from transrec.errors import TransrecError
from transrec.methods import MethodOptions
from transrec.models.backbone import POOLINGS, declared_pooling, find_backbone
from transrec.options import DataOptions, EvaluationOptions, ModelOptions, RunOptions, TrainingOptions
from transrec.paths import resolve
from transrec.training import checkpoint
from transrec.training.run import Run, read_options

GROUPS = (DataOptions, ModelOptions, TrainingOptions, EvaluationOptions, RunOptions)
# What represents items, by --item_tower.
ITEMS_BY = {"text": "titles", "image": "images", "multimodal": "titles and images", "id": "item IDs"}
# What a resumed run may be given anew without changing its numbers up to here.
MAY_CHANGE = {
    *(
        "epochs",
        "patience",
        "output",
        "resume",
        "accept_edits",
        "save_steps",
        "keep_state",
        "tensorboard",
        "cache_dir",
        "profile",
    ),
    *("nproc", "timeout", "device", "deterministic", "eval_memory", "eval_batch", "image_workers"),
    *("state_cache", "cache_device"),
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

    @property
    def name(self) -> str:
        """The method and what it reads, for people: full over item IDs."""
        return f"{self.method} over {ITEMS_BY[self.model.item_tower]}"

    @classmethod
    def from_stored(cls, stored: dict[str, Any], path: Path | None = None) -> "Settings":
        """The settings that a run's options.json, at `path`, holds.

        Raises TransrecError for a value that its flag would not take.
        """
        try:
            method = methods.get(stored.get("method", ""))
            groups = [
                options(**{f.name: stored[f.name] for f in dataclasses.fields(options) if f.name in stored})
                for options in (*GROUPS, method.Options)
            ]
        except TransrecError as error:
            raise TransrecError(f"{path}: {error}; restore the file, or start a new run" if path else error) from error
        return cls(stored["method"], *groups)

    def as_dict(self) -> dict[str, Any]:
        groups = (self.data, self.model, self.training, self.evaluation, self.run, self.method_options)
        return {"method": self.method} | {name: value for group in groups for name, value in group.as_dict().items()}


def deciding(options: dict[str, Any]) -> dict[str, Any]:
    """Those of a run's stored options that decide its numbers."""
    return {name: value for name, value in options.items() if name not in MAY_CHANGE | {"digest"}}


def digest(options: dict[str, Any]) -> str:
    """Hex SHA-256 of the stored options that decide a run's numbers."""
    return hashlib.sha256(json.dumps(deciding(options), sort_keys=True).encode()).hexdigest()


def _check_unedited(folder: Path, stored: dict[str, Any]) -> None:
    """Raise TransrecError when what decides a run's numbers was edited in its options.json, naming it where known."""
    if stored.get("digest") in (None, digest(stored)):
        return
    state = Run.last_of(folder)
    trained_with = checkpoint.describe(state).get("options", {}) if state.exists() else {}
    edited = [name for name, value in deciding(stored).items() if trained_with.get(name, value) != value]
    told = ", ".join(f"{name} {stored[name]!r} (was {trained_with[name]!r})" for name in edited)
    raise TransrecError(
        f"{folder / 'options.json'}: was edited since the run was started: "
        f"{told or 'its digest does not fit'}; restore it, or go on with it as it is by --accept_edits"
    )


def flags(method: str) -> set[str]:
    """Names of all flags of runs of a method."""
    return {f.name for options in (*GROUPS, methods.get(method).Options) for f in dataclasses.fields(options)}


def check_flags(parser: Parser, words: list[str]) -> None:
    """Raise TransrecError for a flag among `words` that neither `parser` nor a run of any method knows.

    A flag may have a scope in front: --SCOPE.FLAG.
    """
    runs = [_parser(method) for method in methods.names()]
    for flag in [f"--{flag.lstrip('-').rpartition('.')[2]}" for flag in parser.unknown(words)]:
        if all(run.unknown([flag]) for run in runs):
            raise no_such_flag(flag, {*parser.flags, *(known for run in runs for known in run.flags)})


def _parser(method: str) -> OptionsParser:
    parser = OptionsParser([*GROUPS, methods.get(method).Options], sys.modules["__main__"].__doc__)
    parser.add_argument("--method", help=f"The method: {', '.join(methods.names())} (default: {method}).")
    return parser


def parse(arguments: list[str], method: str, defaults: dict[str, Any]) -> Settings:
    """Settings from the command line over a resumed run's own options over the script's `defaults`.

    Raises TransrecError for an unknown method, a value out of range, or a flag that contradicts the resumed run.
    """
    first = Parser(add_help=False)
    first.add_argument("--method")
    first.add_argument("--resume", nargs="?", const="")
    first.add_argument("--output")
    early, _ = first.parse_known_args(arguments)
    stored: dict[str, Any] = {}
    resumed = (early.resume or early.output) if early.resume is not None else None
    if early.resume or (resumed and (resolve(resumed) / "options.json").exists()):
        folder = resolve(resumed)
        stored = read_options(folder)
        Settings.from_stored(stored, folder / "options.json")
    chosen = early.method or stored.get("method", method)

    parser, known = _parser(chosen), flags(chosen)
    unknown = set(defaults) - known
    if unknown and chosen == method:
        raise TypeError(f"defaults that are no flags of method {method}: {sorted(unknown)}")
    parser.set_defaults(**{k: v for k, v in (defaults | stored).items() if k in known - {"resume", "output"}})
    for flag in parser.unknown(arguments):
        if of := [name for name in methods.names() if flag.removeprefix("--") in flags(name)]:
            raise TransrecError(f"{flag}: no flag of method {chosen}, but of {', '.join(of)}")
    *groups, method_options = parser.parse_options(arguments)
    settings = Settings(chosen, *groups, method_options)
    if stored and not settings.run.accept_edits:
        _check_unedited(folder, stored)
    if not settings.data.dataset:
        raise TransrecError("--dataset is missing: give the folder of the dataset")
    settings = _with_absolute_paths(settings)
    # A run that was begun before folders were asked how they are read says "auto", and goes on as it began.
    if stored.get("text_pooling") != "auto":
        settings = _with_declared_pooling(settings)
    now = settings.as_dict()
    if changed := [k for k, v in stored.items() if k in now and k not in MAY_CHANGE and now[k] != v]:
        differences = ", ".join(f"--{k} {now[k]} (was {stored[k]})" for k in changed)
        raise TransrecError(f"{resumed}: cannot be resumed with {differences}; leave these out, or start a new run")
    return settings


def _with_declared_pooling(settings: Settings) -> Settings:
    """The same settings, `--text_pooling auto` replaced by what the text encoder's folder declares, where it does."""
    model = settings.model
    if model.text_pooling != "auto" or "text" not in model.encoders:
        return settings
    declared = declared_pooling(model.text_encoder)
    if declared not in POOLINGS:
        return settings
    return dataclasses.replace(settings, model=dataclasses.replace(model, text_pooling=declared))


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
            images=data.images and resolve(data.images),
            cache_dir=data.cache_dir and resolve(data.cache_dir),
        ),
        model=changed(
            model,
            text_encoder=find_backbone(model.text_encoder),
            image_encoder=find_backbone(model.image_encoder),
        ),
        run=changed(run, checkpoint=run.checkpoint and resolve(run.checkpoint)),
    )
