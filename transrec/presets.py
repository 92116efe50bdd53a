"""The papers' settings: what a modality, or a method over it, sets otherwise than a flag's own default.

A flag's default is the value of Adapter4Rec's experiments over titles; a method's flags have theirs in the method's own
file. What the papers set otherwise stands here and nowhere else: Adapter4Rec's experiments over images, IISAN's over
titles and images. A value is used by the runs that have a flag of that name, and passed over by the others. A method
that comes from outside carries its own settings in `Method.presets`, a dict like an entry of METHODS.

Of several rules for one flag the first of these decides: the command line, the run that is resumed, a file that
--presets names, the script, what --protocol published sets, the preset of the method over the modality, that of the
method over every one, that of the modality, the flag's default. A file holds what METHODS holds, as JSON.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transrec import methods, modalities
from transrec.errors import TransrecError
from transrec.options import Options, RunOptions
from transrec.paths import resolve
from transrec.registry import Registry, unknown
from transrec.untrusted import read_object

EVERY = "every modality"
# Of runs that read several modalities, whichever these are.
SEVERAL = "multimodal"
# What the command line or a script must say.
NEVER = {"dataset", "item_tower", "modalities", "protocol"}

# By modality, what --protocol published sets: what the papers train by, where the defaults are known to rank better.
PUBLISHED: dict[str, dict[str, Any]] = {
    EVERY: {"objective": "bce", "init": "xavier", "patience_steps": 0},
    "multimodal": {"objective": "in_batch"},
    "id": {"batch_size": 32},
}

# By modality.
MODALITIES: dict[str, dict[str, Any]] = {
    "image": {"batch_size": 8, "adapter_lr": 4e-4},
    # No paper's: with the papers' own settings (PUBLISHED) IDs are no baseline (benchmarks/README.md).
    "id": {"objective": "in_batch", "batch_size": 128},
    # IISAN has no source domain, so the user encoder trains as a whole and nothing is inserted into it.
    "multimodal": {"objective": "in_batch", "max_seq_len": 10, "insert": "item", "adapter_lr": 1e-4},
}

# By method and modality.
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "full": {"image": {"backbone_lr": 1e-4}, "id": {"lr": 1e-3}},
    "compacter": {"image": {"adapter_lr": 4e-3}},
    "kadapter": {"image": {"adapter_lr": 1.5e-5, "item_size": 384}},
    "prompt": {"image": {"adapter_lr": 2e-4, "n_tokens": 10}},
    "lora": {"multimodal": {"item_rank": 8}},
    "iisan": {EVERY: {"batch_size": 64, "lr": 2e-4, "adapter_lr": 1e-4}},
}


# What scripts/search.py varies where nobody says otherwise, of the flags that a method trains by.
SPACE = {
    "lr": "1e-5..1e-2:log",
    "backbone_lr": "1e-6..1e-3:log",
    "adapter_lr": "1e-5..1e-2:log",
    "dropout": "0..0.5",
    "gru_dropout": "0..0.5",
}


@dataclass(frozen=True)
class Preset:
    """Values of flags, and who sets them.

    Attributes:
        method: whose runs take them; None: those of every method.
        modality: by which their items are read, or SEVERAL; None: by whichever.
        place: where this is written.
        values: by the names of the flags.
        protocol: under which they are taken; None: under every one.
        file: whether a file that --presets names says so.
    """

    method: str | None
    modality: str | None
    place: str
    values: Mapping[str, Any]
    protocol: str | None = None
    file: bool = False

    @property
    def name(self) -> str:
        """For people, like "preset of houlsby over images"."""
        known = {SEVERAL: "several modalities"} | {name: modalities.get(name).reads for name in modalities.names()}
        over = known.get(self.modality, self.modality)
        if self.file:
            return f"--presets for {self.method}{f' over {over}' if over else ''}"
        if self.protocol:
            return f"protocol {self.protocol}{f' over {over}' if over else ''}"
        return f"preset of {' over '.join(filter(None, (self.method, over)))}"


def _every(file: str | None = None) -> Iterator[Preset]:
    if file:
        place = str(resolve(file))
        for method, table in read_object(place, "--presets").items():
            yield from _of_method(method, table, place, file=True)
    for modality, values in PUBLISHED.items():
        yield Preset(None, None if modality == EVERY else modality, __file__, values, "published")
    for modality, values in MODALITIES.items():
        yield Preset(None, modality, __file__, values)
    tables = [(name, METHODS[name], __file__) for name in METHODS]
    tables += [(name, methods.get(name).presets, methods.METHODS.place(name)) for name in methods.names()]
    for method, table, place in tables:
        yield from _of_method(method, table, place)


def _of_method(method: str, table: Any, place: str, file: bool = False) -> Iterator[Preset]:
    if not isinstance(table, Mapping):
        raise TransrecError(f"{place}: presets of {method}: must be a dict by modality, not {table!r}")
    for modality, values in table.items():
        preset = Preset(method, None if modality == EVERY else modality, place, values, file=file)
        if not isinstance(values, Mapping):
            raise TransrecError(f"{place}: {preset.name}: must be a dict of values by flag, not {values!r}")
        yield preset


def of(method: str, read_by: Sequence[str], protocol: str = "strong", file: str | None = None) -> list[Preset]:
    """The presets of a run of a method whose items are read by these modalities, that which decides first in front.

    Args:
        file: that --presets names.
    """
    modality = modality_of(read_by)
    fit = [one for one in _every(file) if one.method in (None, method) and one.modality in (None, modality)]
    fit = [one for one in fit if one.protocol in (None, protocol)]
    return sorted(fit, key=lambda one: (not one.file, one.protocol is None, one.method is None, one.modality is None))


def modality_of(read_by: Sequence[str]) -> str:
    """The name under which presets keep what belongs to runs whose items are read by these modalities."""
    return read_by[0] if len(read_by) == 1 else SEVERAL


def check(takers: Callable[[str | None], Sequence[type[Options]]], file: str | None = None) -> None:
    """Raise TransrecError, naming the place, for a preset of what there is not, or with a value that its flag refuses.

    Args:
        takers: of a method, or of every method, the dataclasses whose flags a preset can set.
        file: that --presets names.
    """
    for preset in _every(file):
        said = f"{preset.place}: {preset.name}"
        for kind, name, known in (
            ("method", preset.method, methods.names()),
            ("modality", preset.modality, [*modalities.names(), SEVERAL, EVERY]),
        ):
            if name not in (None, *known):
                raise TransrecError(f"{said}: {kind} {name}: {unknown(name, known)}")
        for flag, value in preset.values.items():
            _check_value(said, flag, value, takers(preset.method))


def _check_value(said: str, flag: str, value: Any, takers: Sequence[type[Options]]) -> None:
    owners = [options for options in takers if flag in options.defaults()]
    if flag in NEVER or RunOptions in owners:
        raise TransrecError(f"{said}: --{flag}: a preset cannot set it")
    if not owners:
        raise TransrecError(f"{said}: --{flag}: no run of it has such a flag")
    try:
        owners[0](**{flag: value})
        for kind in Registry.every:
            for name in (value if kind.several else [value]) if kind.flag == flag else ():
                kind.get(name)
    except TransrecError as error:
        raise TransrecError(f"{said}: {error}") from error
