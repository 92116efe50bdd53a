"""Search spaces: a range or a list of choices for each flag that a search varies."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transrec import methods, presets
from transrec.errors import TransrecError
from transrec.modalities import BackboneModality
from transrec.options import DataOptions, EvaluationOptions, RunOptions
from transrec.paths import resolve
from transrec.settings import Settings
from transrec.untrusted import read_object

SPACE_FORMS = "give FLAG=LOW..HIGH, FLAG=LOW..HIGH:log or FLAG=A,B,C, or a JSON file of these"
RANGE = re.compile(r"(?P<low>[^,]+?)\.\.(?P<high>[^,:]+)(?P<log>:log)?")
# Flags that a trial cannot vary: they decide what is measured, the random numbers, and the rows of a search.
FIXED = {"seed", "select_by", "method", *presets.NEVER}
VARIABLE_DATA_FLAGS = {"max_seq_len"}

# Ranges or choices as text, by (method or "", flag).
Spaces = dict[tuple[str, str], str]


@dataclass(frozen=True)
class Dimension:
    """A flag that a search varies.

    Attributes:
        flag: name of the flag.
        text: the range or choices as given to --space.
        values: lower and upper end of a range, or the choices, in the flag's type.
        is_range: whether values between the two ends may also be drawn.
        log: whether values are drawn uniformly on a logarithmic scale.
    """

    flag: str
    text: str
    values: tuple[Any, ...]
    is_range: bool = False
    log: bool = False

    def has(self, value: Any) -> bool:
        return self.values[0] <= value <= self.values[1] if self.is_range else value in self.values


def read_spaces(words: Sequence[str]) -> Spaces:
    """Return the ranges and choices given by the words of --space. Later words override earlier ones.

    Raises TransrecError if a word is neither FLAG=RANGE nor a JSON file, or if it names an unknown method.
    """
    spaces: Spaces = {}
    for word in words:
        flag, equals, text = word.partition("=")
        if equals:
            scope, _, name = flag.removeprefix("--").replace("-", "_").rpartition(".")
            spaces[scope, name] = text
        elif word.endswith(".json"):
            spaces |= _read_file(resolve(word))
        else:
            raise TransrecError(f"--space {word}: {SPACE_FORMS}")
    for scope, flag in spaces:
        if scope and scope not in methods.names():
            raise TransrecError(f"--space {scope}.{flag}: the word before the dot must be a method, not {scope!r}")
    return spaces


def _read_file(path: Path) -> Spaces:
    content = read_object(path, "--space")
    every = {name: value for name, value in content.items() if not isinstance(value, Mapping)}
    scopes = {"": every} | {name: value for name, value in content.items() if isinstance(value, Mapping)}
    return {
        (scope, flag): ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for scope, values in scopes.items()
        for flag, value in values.items()
    }


def default_space(settings: Settings, has_start: bool) -> dict[str, str]:
    """Return the part of `presets.SPACE` for runs with these settings: the flags that affect their training.

    Args:
        has_start: whether the runs start from a source run.
    """
    method, known = methods.get(settings.method), settings.as_dict()
    idle = set()
    if not (
        method.trains_backbone
        and any(isinstance(modality, BackboneModality) for modality in settings.modalities.values())
    ):
        idle.add("backbone_lr")
    mode = settings.training.train_recommender
    if not (method.trains_recommender or mode == "yes" or (mode == "auto" and not has_start)):
        idle.add("lr")
    return {flag: text for flag, text in presets.SPACE.items() if flag in known and flag not in idle}


def dimension(flag: str, text: str, settings_with: Callable[[str], Settings]) -> Dimension:
    """Return the dimension for a flag and its range or choices.

    Args:
        settings_with: returns the settings of a run whose command line has the given word as the flag's value.

    Raises TransrecError if the range is empty, if the runs do not accept a value, or if the flag cannot be varied.
    """
    try:
        match = RANGE.fullmatch(text.strip())
        words = [match["low"], match["high"]] if match else text.split(",")
        variants = [settings_with(word.strip()) for word in words]
        _check_free(flag, variants[0])
        values = tuple(settings.as_dict()[flag] for settings in variants)
        if match:
            _check_range(values, bool(match["log"]))
        elif len({*map(str, values)}) < len(values):
            raise TransrecError("names a choice twice")
    except TransrecError as error:
        raise TransrecError(f"--space {flag}={text}: {str(error).removesuffix('.')}") from error
    return Dimension(flag, text, values, bool(match), bool(match and match["log"]))


def _check_free(flag: str, settings: Settings) -> None:
    fixed = {
        name
        for options in (DataOptions, EvaluationOptions, RunOptions)
        for name in options.defaults().keys() - VARIABLE_DATA_FLAGS
    }
    if flag in fixed | FIXED:
        raise TransrecError("decides what is measured, or where; a search cannot vary it, give a value with --" + flag)
    if isinstance(settings.as_dict()[flag], list):
        raise TransrecError("takes several values; a search varies flags that take one")


def _check_range(values: tuple[Any, ...], log: bool) -> None:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise TransrecError("is not a range of numbers; list its choices as A,B,C")
    low, high = values
    if not low < high:
        raise TransrecError(f"an empty range, {low:g} is not below {high:g}")
    if log and low <= 0:
        raise TransrecError(f"a range with :log must begin above 0, not at {low:g}")
