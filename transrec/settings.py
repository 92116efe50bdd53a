"""The settings of a run, and how they are read from the command line."""

import dataclasses
import hashlib
import json
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transrec import presets
from transrec.arguments import OptionsParser, Parser, no_such_flag
from transrec.assembly import Plan
from transrec.baselines import BASELINES
from transrec.data.dataset import find_file
from transrec.errors import TransrecError
from transrec.methods import METHODS, MethodOptions
from transrec.modalities import MODALITIES, Modality
from transrec.models.objectives import OBJECTIVES
from transrec.models.user_encoders import USER_ENCODERS
from transrec.options import (
    DataOptions,
    EvaluationOptions,
    ModelOptions,
    Options,
    RunOptions,
    TrainingOptions,
)
from transrec.paths import resolve
from transrec.plugins import check_named, load_plugins, load_required_plugins
from transrec.registry import Choice, Registry
from transrec.tracking import TRACKERS
from transrec.training import checkpoint
from transrec.training.metrics import METRICS, names_of
from transrec.training.optimizers import OPTIMIZERS
from transrec.training.run import Run, read_options
from transrec.training.schedules import SCHEDULES

GROUPS = (DataOptions, ModelOptions, TrainingOptions, EvaluationOptions, RunOptions)
# A run chooses entries of each kind with the kind's flag, and then has the flags of these entries as well.
KINDS: tuple[Registry, ...] = (
    *(METHODS, MODALITIES, USER_ENCODERS, OBJECTIVES),
    *(OPTIMIZERS, SCHEDULES, METRICS, BASELINES, TRACKERS),
)
# The flags that --help shows; --help-all shows all.
COMMON = (
    *("dataset", "method", "item_tower", "text_encoder", "image_encoder", "checkpoint", "objective"),
    *("epochs", "batch_size", "lr", "adapter_lr", "output", "resume", "nproc"),
)
# Values of these flags for runs that were started before the flags existed, so that such runs continue unchanged.
LEGACY_VALUES = {"cached": "no", "init": "xavier", "patience_steps": 0}


@dataclass(frozen=True)
class Settings:
    """All options of one run.

    Attributes:
        choices: the entries that the run chose and the values of their flags, by the flag of their kind.
        set_by: by flag, the source of a value that is not the flag's default: "command line", "preset of images", ...
    """

    data: DataOptions
    model: ModelOptions
    training: TrainingOptions
    evaluation: EvaluationOptions
    run: RunOptions
    choices: dict[str, list[Choice]]
    set_by: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def choice(self, kind: str) -> Choice:
        """Return the only entry that the run chose with the flag --KIND."""
        (only,) = self.choices[kind]
        return only

    @property
    def method(self) -> str:
        return self.choice("method").name

    @property
    def method_options(self) -> MethodOptions:
        return self.choice("method").options

    @property
    def name(self) -> str:
        """The method and the content that it reads, for messages: full over item IDs."""
        *others, last = (modality.reads for modality in self.modalities.values())
        return f"{self.method} over {', '.join(others)} and {last}" if others else f"{self.method} over {last}"

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """The modalities that items are read by, by name."""
        choices = self.choices[MODALITIES.flag]
        return {choice.name: choice.entry(choice.options, self.data.dataset) for choice in choices}

    @classmethod
    def from_stored(cls, stored: dict[str, Any], path: Path | None = None) -> "Settings":
        """Return the settings that are stored in a run's options.json at `path`.

        Raises TransrecError for a value that its flag does not accept.
        """
        stored = {name: value for name, value in LEGACY_VALUES.items() if name != "cached"} | stored
        try:
            chosen = _chosen(stored)
            groups = [
                options(**{f.name: stored[f.name] for f in dataclasses.fields(options) if f.name in stored})
                for _, options in _groups(chosen)
            ]
            settings = cls._from_groups(chosen, groups)
        except TransrecError as error:
            raise TransrecError(f"{path}: {error}; restore the file, or start a new run" if path else error) from error
        return settings

    @classmethod
    def _from_groups(cls, chosen: dict[str, list[str]], groups: list[Any]) -> "Settings":
        """Return settings with the entries `chosen` and with `groups`, objects of the classes of `_groups(chosen)`."""
        groups = [_with_current_names(options) for options in groups]
        own = iter(groups[len(GROUPS) :])
        choices = {k.flag: [Choice(name, k.get(name), next(own)) for name in chosen[k.flag]] for k in KINDS}
        return cls(*groups[: len(GROUPS)], choices)

    def changed(self, change: Callable[[Options], Options]) -> "Settings":
        """Return settings with the same entries, in which `change` was applied to each group of options."""
        names = {kind: [choice.name for choice in choices] for kind, choices in self.choices.items()}
        return Settings._from_groups(names, [change(options) for options in self.groups])

    @property
    def plan(self) -> Plan:
        """The settings that decide how the recommender is built."""
        return Plan(
            method=self.choice("method"),
            user_encoder=self.choice("user_encoder"),
            objective=self.choice("objective"),
            modalities=self.modalities,
            model=self.model,
            training=self.training,
            checkpoint=self.run.checkpoint,
            max_seq_len=self.data.max_seq_len,
            cached=self.data.cached,
        )

    @property
    def groups(self) -> list[Options]:
        """All groups of options; those of the chosen entries come last."""
        own = (choice.options for choices in self.choices.values() for choice in choices)
        return [self.data, self.model, self.training, self.evaluation, self.run, *own]

    def as_dict(self) -> dict[str, Any]:
        return {"method": self.method} | {
            name: value for group in self.groups for name, value in group.as_dict().items()
        }

    @property
    def non_defaults(self) -> dict[str, Any]:
        """The values that differ from the flag's default, by flag."""
        defaults = {name: value for group in self.groups for name, value in group.defaults().items()}
        return {name: value for name, value in self.as_dict().items() if name in defaults and value != defaults[name]}


def _with_current_names(options: Any) -> Any:
    """Return the same options with the current names of entries in place of former ones."""
    named = {kind.flag for kind in KINDS if not kind.several} & {f.name for f in dataclasses.fields(options)}
    now = {kind.flag: kind.current(getattr(options, kind.flag)) for kind in KINDS if kind.flag in named}
    return dataclasses.replace(options, **now) if now else options


def _chosen(*sources: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of a run's entries by the flag of their kind, each from the first source that has the flag."""
    defaults = {name: value for options in GROUPS for name, value in options.defaults().items()}
    known = ChainMap(*sources, defaults, {"method": ""})
    chosen = {}
    for kind in KINDS:
        value = _modality_names(known) if kind is MODALITIES else known[kind.flag]
        names = [*kind.always, *(value if isinstance(value, list) else [value])]
        chosen[kind.flag] = list(dict.fromkeys(kind.current(name) for name in names))
    return chosen


def _modality_names(known: Mapping[str, Any]) -> list[str]:
    """Return the modalities of a run with these values of flags."""
    return ModelOptions(item_tower=known["item_tower"], modalities=known["modalities"]).modality_names


def _kind_name_pairs(chosen: dict[str, list[str]]) -> list[tuple[Registry, str]]:
    """Return the kind and the name of each chosen entry."""
    return [(kind, name) for kind in KINDS for name in chosen[kind.flag]]


def _groups(chosen: dict[str, list[str]]) -> list[tuple[str, type[Options]]]:
    """Return the titles and dataclasses of all flags of a run that chooses these entries.

    Raises TransrecError for an unknown name, and for a flag that two dataclasses have.
    """
    groups = [(options._argument_group_name, options) for options in GROUPS]
    owners = {
        "method": "all runs",
        **{flag: f"{title} options" for title, group in groups for flag in _flags_of(group)},
    }
    for kind, name in _kind_name_pairs(chosen):
        options = kind.get(name).Options
        owner = f"{kind.kind} {name} ({kind.place(name)})"
        for flag in _flags_of(options):
            if (other := owners.setdefault(flag, owner)) != owner:
                raise TransrecError(f"--{flag}: is a flag of {owner} and of {other}; give one of them another name")
        groups.append((f"{kind.kind} {name}", options))
    return groups


def _flags_of(options: type[Options]) -> list[str]:
    """Return the names of a dataclass's flags, including their aliases."""
    return [
        name
        for f in dataclasses.fields(options)
        for name in (f.name, *(alias.lstrip("-") for alias in f.metadata.get("aliases", ())))
    ]


# Flags that a resumed run may change, although they decide when it stops.
STOPPING = {"epochs", "patience", "patience_steps"}
# Flags that say where a dataset is: it may be moved, and only the content of its files counts.
PLACES = {"dataset", "users_file", "items_file"}


def result_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return those of a run's options that decide its numbers."""
    excluded = _changeable_flags(options) | {"digest", "set_by"}
    return {name: value for name, value in options.items() if name not in excluded}


def _changeable_flags(options: dict[str, Any]) -> set[str]:
    """Return the names of the flags that may change when a run with these options is resumed."""
    return {
        f.name
        for _, group in _groups(_chosen(options))
        for f in dataclasses.fields(group)
        if not f.metadata.get("affects_results", True)
    }


def digest(options: dict[str, Any]) -> str:
    """Return the hex SHA-256 of the stored options that decide a run's numbers."""
    return hashlib.sha256(json.dumps(result_options(options), sort_keys=True).encode()).hexdigest()


def _check_unedited(folder: Path, stored: dict[str, Any]) -> None:
    """Raise TransrecError if options that decide a run's numbers were edited in options.json; name them if known."""
    if stored.get("digest") in (None, digest(stored)):
        return
    state = Run.last_of(folder)
    trained_with = checkpoint.describe(state).options if state.exists() else {}
    edited = [name for name, value in result_options(stored).items() if trained_with.get(name, value) != value]
    changes = ", ".join(f"{name} {stored[name]!r} (was {trained_with[name]!r})" for name in edited)
    raise TransrecError(
        f"{folder / 'options.json'}: was edited since the run was started: "
        f"{changes or 'its digest does not fit'}; restore it, or accept the edits with --accept_edits"
    )


def flags(**chosen: Any) -> set[str]:
    """Return the names of all flags of a run with the `chosen` entries, given by the flag of their kind.

    Presets and defaults choose the entries that are not given.
    """
    by_presets = (preset.values for preset in _presets(chosen, {"method": "full"}, file=chosen.get("presets")))
    return {f.name for _, options in _groups(_chosen(chosen, *by_presets)) for f in dataclasses.fields(options)}


def _presets(*sources: Mapping[str, Any], file: str | None = None) -> list[presets.Preset]:
    """Return the presets for a run, strongest first. Each flag's value is from the first source that has the flag.

    Args:
        file: the file given by --presets.
    """
    known = ChainMap(*sources, ModelOptions.defaults())
    return presets.for_run(known["method"], _modality_names(known), known["protocol"], file)


def _preset_option_classes(method: str | None) -> list[type[Options]]:
    """Return the dataclasses whose flags a preset of a method, or of all methods (None), can set."""
    kinds = [kind for kind in KINDS if kind is not METHODS or method is None]
    chosen = [METHODS.get(method).Options] if method else []
    return [*GROUPS, *chosen, *(kind.get(name).Options for kind in kinds for name in kind.names())]


def check_flags(parser: Parser, words: list[str]) -> None:
    """Raise TransrecError for a flag among `words` that `parser` does not know, and that no run could have.

    A flag may be prefixed with a scope: --SCOPE.FLAG. Plugins given by --plugin are loaded.
    """
    first = Parser(add_help=False)
    _add_plugin(first)
    load_plugins(first.parse_known_args(words)[0].plugin)
    runs = [_parser(_chosen({"method": "full"}))]
    runs += [OptionsParser([("", kind.get(name).Options)]) for kind in KINDS for name in kind.names()]
    for flag in [f"--{flag.lstrip('-').rpartition('.')[2]}" for flag in parser.unknown(words)]:
        if all(run.unknown([flag]) for run in runs):
            raise no_such_flag(flag, {*parser.flags, *(known for run in runs for known in run.flags)} - {"--help-all"})


def _parser(chosen: dict[str, list[str]]) -> OptionsParser:
    parser = OptionsParser(_groups(chosen), sys.modules["__main__"].__doc__, COMMON)
    parser.add_argument("--method", help="Training method: what is trained, and how.", default=chosen["method"][0])
    for kind in KINDS:
        parser.add_to_help(kind.flag, f" {'Any' if kind.several else 'One'} of {', '.join(kind.names())}.")
    return parser


def parse(arguments: list[str], method: str, defaults: dict[str, Any]) -> Settings:
    """Return the settings of a run.

    If several sources set a flag, the first of these decides: the command line, the options of the resumed run, the
    file given by --presets, the script's `defaults`, the other presets.

    Raises TransrecError for an unknown method, a value out of range, a flag that contradicts the resumed run, or an
    invalid preset.
    """
    first = Parser(add_help=False)
    for kind in KINDS:
        first.add_argument(f"--{kind.flag}", nargs="+" if kind.several else None)
    first.add_argument("--tensorboard", dest="tracker", action="store_const", const=["tensorboard"])
    first.add_argument("--item_tower")
    first.add_argument("--protocol")
    first.add_argument("--presets")
    first.add_argument("--resume", nargs="?", const="")
    first.add_argument("--output")
    _add_plugin(first)
    early, _ = first.parse_known_args(arguments)
    given = {flag: value for flag, value in vars(early).items() if value is not None}
    given["plugin"] = [*defaults.get("plugin", []), *early.plugin]
    stored: dict[str, Any] = {}
    resumed = (early.resume or early.output) if early.resume is not None else None
    if early.resume or (resumed and (resolve(resumed) / "options.json").exists()):
        folder = resolve(resumed)
        stored = read_options(folder)
        as_resumed = read_settings(folder, given["plugin"]).as_dict()
        if stored.get("tensorboard") is True:
            # Earlier releases stored the tracker in this form.
            stored.setdefault("tracker", ["tensorboard"])
    load_plugins(given["plugin"])
    presets.check(_preset_option_classes, early.presets)
    defaults = {"method": method} | defaults
    fit = _presets(given, stored, defaults, file=early.presets)
    file_presets = [preset for preset in fit if preset.from_file]
    rules = [("resumed run", (LEGACY_VALUES if stored else {}) | stored)]
    rules += [(preset.name, preset.values) for preset in file_presets]
    rules += [("script", defaults)]
    rules += [(preset.name, preset.values) for preset in fit if preset not in file_presets]
    chosen = _chosen(given, *(values for _, values in rules))

    parser = _parser(chosen)
    if unknown := set(defaults) - flags(**defaults) - {"method"}:
        raise TypeError(f"defaults that are not flags of method {method}: {sorted(unknown)}")
    parser.set_defaults(plugin=defaults.get("plugin", []))
    set_by: dict[str, str] = {}
    for rule, values in reversed(rules):
        values = {
            name: value for name, value in values.items() if name in parser.names - {"resume", "output", "plugin"}
        }
        parser.set_defaults(**values)
        set_by |= dict.fromkeys(values, rule)
    if isinstance(before := stored.get("set_by"), dict):
        set_by |= {name: str(rule) for name, rule in before.items() if name in stored}
    set_by |= dict.fromkeys(parser.given(arguments), "command line")
    for flag in parser.unknown(arguments):
        word = flag.removeprefix("--").replace("-", "_").removeprefix("no_")
        for kind in KINDS:
            if owners := [name for name in kind.names() if word in _flags_of(kind.get(name).Options)]:
                have = ", ".join(chosen[kind.flag]) or "none"
                raise TransrecError(f"{flag}: no flag of {kind.kind} {have}, but of {', '.join(owners)}")
    settings = Settings._from_groups(chosen, parser.parse_options(arguments))
    if stored and not settings.run.accept_edits:
        _check_unedited(folder, stored)
    _check_selection(settings)
    if not settings.data.dataset:
        raise TransrecError("--dataset is missing: give the folder of the dataset")
    settings = _with_absolute_paths(settings)
    for kind, name in _kind_name_pairs(chosen):
        check_named(kind.place(name), settings.run.plugin)
    for choice in settings.choices[MODALITIES.flag]:
        # A run that was started before folders could declare values has stored "auto", and continues with it.
        declared = {
            k: v for k, v in choice.options.declared_flags().items() if stored.get(k) != getattr(choice.options, k)
        }
        settings = settings.changed(partial(_replaced_if, target=choice.options, values=declared))
        set_by |= dict.fromkeys(declared, f"{choice.name} encoder")
    if settings.model.modalities and "modalities" in set_by:
        set_by["item_tower"] = set_by["modalities"]
    now = settings.as_dict()
    # The content of a dataset is compared once its files are read.
    may_change = _changeable_flags(now) | PLACES
    if any(settings.choice(kind).entry.reads_steps for kind in ("schedule", "method")):
        may_change -= {"epochs"}
    if changed := [k for k in stored if k in now and k not in may_change and now[k] != as_resumed.get(k, stored[k])]:
        differences = ", ".join(f"--{k} {now[k]} (was {stored[k]})" for k in changed)
        raise TransrecError(f"{resumed}: cannot be resumed with {differences}; leave these out, or start a new run")
    return dataclasses.replace(
        settings, set_by={name: set_by[name] for name in settings.non_defaults if name in set_by}
    )


def _check_selection(settings: Settings) -> None:
    """Raise TransrecError if the metric that selects the best epoch is not computed."""
    chosen = settings.training.select_by
    metrics = [choice.build() for choice in settings.choices["metrics"]]
    computed = names_of(settings.evaluation.cutoffs, [metric for metric in metrics if metric.higher_is_better])
    if chosen in {*names_of(settings.evaluation.cutoffs, metrics)} - {*computed}:
        raise TransrecError(
            f"--select_by {chosen}: the best epoch is that with the highest value, but here lower values are better; "
            f"choose from {', '.join(computed)}"
        )
    if chosen not in computed:
        raise TransrecError(
            f"--select_by {chosen}: is not computed; choose from {', '.join(computed)}, or name more by --metrics and "
            f"--cutoffs"
        )


def _add_plugin(parser: Parser) -> None:
    parser.add_argument("--plugin", action="extend", nargs="+", default=[])


def read_settings(folder: str | Path, plugins: Sequence[str | Path] = ()) -> Settings:
    """Return the settings of the run in a folder.

    Args:
        plugins: plugin files that may be executed; they must include all that the run was started with.

    Raises TransrecError if the folder holds no run, or a damaged one, or if the run needs another plugin.
    """
    path = resolve(folder) / "options.json"
    stored = read_options(folder)
    load_required_plugins(stored, plugins, path)
    return Settings.from_stored(stored, path)


def _replaced_if(options: Options, target: Options, values: dict[str, Any]) -> Options:
    """Return `options` with new values if they are the object `target`; other options are returned unchanged."""
    return dataclasses.replace(options, **values) if options is target else options


def _with_absolute_paths(settings: Settings) -> Settings:
    """Return the same settings with paths that mean the same in any working directory."""
    data = settings.data
    folder = resolve(data.dataset)
    files = {"users_file": data.users_file, "items_file": data.items_file}
    paths = {name: str(find_file(folder, name.removesuffix("_file"), given)) for name, given in files.items() if given}
    return settings.changed(lambda options: _replaced_if(options, data, paths).absolute())
