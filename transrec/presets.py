"""The papers' settings: values that a modality, or a method over a modality, sets instead of a flag's own default.

The default of a flag is its value in Adapter4Rec's experiments over titles; the defaults of a method's own flags are in
the method's file. All other settings of the papers are here and nowhere else: those of Adapter4Rec's experiments over
images, and of IISAN's over titles and images. A run uses a value if it has a flag of that name, and ignores it if not.
A method from outside transrec carries its own settings in `Method.presets`, a dict like an entry of METHODS.

If several rules set the same flag, the first of these decides: the command line; the run that is resumed; a file given
by --presets; the script; --protocol published; the preset of the method over the modality; the preset of the method
over every modality; the preset of the modality; the flag's default. A --presets file is a JSON object like METHODS.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transrec import methods, modalities
from transrec.errors import TransrecError
from transrec.options import Options, RunOptions
from transrec.paths import resolve
from transrec.registry import Registry, unknown_text
from transrec.untrusted import read_object

EVERY = "every modality"
# The modality in presets for runs that read several modalities, whichever they are.
SEVERAL = "multimodal"
# Flags that no preset can set, only the command line or a script.
NEVER = {"dataset", "item_tower", "modalities", "protocol"}

# Settings of --protocol published, by modality: those of the papers, where the defaults are known to rank better.
PUBLISHED: dict[str, dict[str, Any]] = {
    EVERY: {"objective": "bce", "init": "xavier", "patience_steps": 0},
    "multimodal": {"objective": "in_batch"},
    "id": {"batch_size": 32},
}

# Presets by modality.
MODALITIES: dict[str, dict[str, Any]] = {
    "image": {"batch_size": 8, "adapter_lr": 4e-4},
    # From no paper: with the papers' settings (PUBLISHED), IDs are too weak as a baseline (benchmarks/README.md).
    "id": {"objective": "in_batch", "batch_size": 128},
    # IISAN has no source domain, so all of the user encoder trains and nothing is inserted into it.
    "multimodal": {"objective": "in_batch", "max_seq_len": 10, "insert": "item", "adapter_lr": 1e-4},
}

# Presets by method and modality.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {"image": {"backbone_lr": 1e-4}, "id": {"lr": 1e-3}},
    "compacter": {"image": {"adapter_lr": 4e-3}},
    "kadapter": {"image": {"adapter_lr": 1.5e-5, "item_size": 384}},
    "prompt": {"image": {"adapter_lr": 2e-4, "n_tokens": 10}},
    "lora": {"multimodal": {"item_rank": 8}},
    "iisan": {EVERY: {"batch_size": 64, "lr": 2e-4, "adapter_lr": 1e-4}},
}


# Default search space of scripts/search.py, which varies those of these flags that affect a method's training.
SPACE = {
    "lr": "1e-5..1e-2:log",
    "backbone_lr": "1e-6..1e-3:log",
    "adapter_lr": "1e-5..1e-2:log",
    "dropout": "0..0.5",
    "gru_dropout": "0..0.5",
}


@dataclass(frozen=True)
class Preset:
    """Values of flags, and the runs that use them.

    Attributes:
        method: the method of the runs; None: any method.
        modality: the modality that reads the items of the runs, or SEVERAL; None: any modalities.
        place: where the preset is written, for messages.
        values: the values by flag.
        protocol: the --protocol of the runs; None: any protocol.
        from_file: whether the preset is from a file given by --presets.
    """

    method: str | None
    modality: str | None
    place: str
    values: Mapping[str, Any]
    protocol: str | None = None
    from_file: bool = False

    @property
    def name(self) -> str:
        """A name for messages, such as "preset of houlsby over images"."""
        known = {SEVERAL: "several modalities"} | {name: modalities.get(name).reads for name in modalities.names()}
        over = known.get(self.modality, self.modality)
        if self.from_file:
            return f"--presets for {self.method}{f' over {over}' if over else ''}"
        if self.protocol:
            return f"protocol {self.protocol}{f' over {over}' if over else ''}"
        return f"preset of {' over '.join(filter(None, (self.method, over)))}"


def _all_presets(file: str | None = None) -> Iterator[Preset]:
    if file:
        place = str(resolve(file))
        for method, table in read_object(place, "--presets").items():
            yield from _method_presets(method, table, place, from_file=True)
    for modality, values in PUBLISHED.items():
        yield Preset(None, None if modality == EVERY else modality, __file__, values, "published")
    for modality, values in MODALITIES.items():
        yield Preset(None, modality, __file__, values)
    tables = [(name, METHODS[name], __file__) for name in METHODS]
    tables += [(name, methods.get(name).presets, methods.METHODS.place(name)) for name in methods.names()]
    for method, table, place in tables:
        yield from _method_presets(method, table, place)


def _method_presets(method: str, table: Any, place: str, from_file: bool = False) -> Iterator[Preset]:
    if not isinstance(table, Mapping):
        raise TransrecError(f"{place}: presets of {method}: must be a dict by modality, not {table!r}")
    for modality, values in table.items():
        preset = Preset(method, None if modality == EVERY else modality, place, values, from_file=from_file)
        if not isinstance(values, Mapping):
            raise TransrecError(f"{place}: {preset.name}: must be a dict of values by flag, not {values!r}")
        yield preset


def for_run(
    method: str, modality_names: Sequence[str], protocol: str = "strong", file: str | None = None
) -> list[Preset]:
    """Return the presets for a run of a method over these modalities; the first preset that sets a flag decides.

    Args:
        file: the file given by --presets.
    """
    modality = modality_of(modality_names)
    fit = [
        preset
        for preset in _all_presets(file)
        if preset.method in (None, method) and preset.modality in (None, modality)
    ]
    fit = [preset for preset in fit if preset.protocol in (None, protocol)]
    return sorted(
        fit, key=lambda one: (not one.from_file, one.protocol is None, one.method is None, one.modality is None)
    )


def modality_of(modality_names: Sequence[str]) -> str:
    """Return the name that presets use for runs over these modalities."""
    return modality_names[0] if len(modality_names) == 1 else SEVERAL


def check(option_classes: Callable[[str | None], Sequence[type[Options]]], file: str | None = None) -> None:
    """Raise TransrecError for a preset of an unknown method, modality or flag, or with a value that its flag rejects.

    Args:
        option_classes: returns the dataclasses whose flags a preset of a method, or of all methods (None), can set.
        file: the file given by --presets.
    """
    for preset in _all_presets(file):
        source = f"{preset.place}: {preset.name}"
        for kind, name, known in (
            ("method", preset.method, methods.names()),
            ("modality", preset.modality, [*modalities.names(), SEVERAL, EVERY]),
        ):
            if name not in (None, *known):
                raise TransrecError(f"{source}: {kind} {name}: {unknown_text(name, known)}")
        for flag, value in preset.values.items():
            _check_value(source, flag, value, option_classes(preset.method))


def _check_value(source: str, flag: str, value: Any, option_classes: Sequence[type[Options]]) -> None:
    owners = [options for options in option_classes if flag in options.defaults()]
    if flag in NEVER or RunOptions in owners:
        raise TransrecError(f"{source}: --{flag}: a preset cannot set it")
    if not owners:
        raise TransrecError(f"{source}: --{flag}: no run of it has such a flag")
    try:
        owners[0](**{flag: value})
        for kind in Registry.all_registries:
            for name in (value if kind.several else [value]) if kind.flag == flag else ():
                kind.get(name)
    except TransrecError as error:
        raise TransrecError(f"{source}: {error}") from error
