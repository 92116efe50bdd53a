"""Command lines: flags from dataclasses of options, and mistakes told in one line with the nearest names."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args, get_origin

from transrec.errors import TransrecError
from transrec.options import Options, kinds_of

FLAG = re.compile(r"--?[A-Za-z]\S*")
TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


def no_such_flag(flag: str, known: Collection[str]) -> TransrecError:
    """What to raise for a flag that is none of the known ones: names those it may have been meant for."""
    # The hyphens that all share make none of them alike.
    names = {one.lstrip("-"): one for one in known}
    near = [names[name] for name in difflib.get_close_matches(flag.lstrip("-"), names, n=2, cutoff=0.7)]
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    help = "--help-all" if "--help-all" in known else "--help"
    return TransrecError(f"{flag}: no such flag; {meant}{help} lists them")


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is a TransrecError of one line.

    Flags are written with underscores; hyphens in their place are understood.
    """

    def __init__(self, description: str | None = None, add_help: bool = True):
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False, add_help=add_help)
        for kind, convert in ((int, _whole_number), (float, _number), (bool, _true_or_false)):
            self.register("type", kind, convert)

    @property
    def flags(self) -> list[str]:
        """All flags that it knows, as they are written."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def unknown(self, words: Sequence[str]) -> list[str]:
        """The flags among `words` that it does not know."""
        flags = [self._spelt(word).partition("=")[0] for word in words if FLAG.fullmatch(word.partition("=")[0])]
        return [flag for flag in flags if flag not in self._option_string_actions]

    def given(self, words: Sequence[str]) -> set[str]:
        """Names of the values that flags among `words` set."""
        flags = (self._spelt(word).partition("=")[0] for word in words)
        return {self._option_string_actions[flag].dest for flag in flags if flag in self._option_string_actions}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Raises TransrecError where argparse prints its usage and exits."""
        words = sys.argv[1:] if args is None else args
        # First of all: what argparse would say of a misspelt flag may be that its value is one too many.
        for flag in self.unknown(words):
            raise no_such_flag(flag, self.flags)
        return super().parse_args(words, namespace)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._spelt(word) for word in words], namespace)

    def error(self, message: str):
        """Raise TransrecError: argparse calls this with what is wrong."""
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            message = f"{missing[1]}: missing; --help says what to give"
        elif stray := re.fullmatch(r"unrecognized arguments: (.*)", message):
            message = f"unknown: {stray[1]}; --help shows how to call this"
        # Of a flag with several names the first.
        raise TransrecError(re.sub(r"^argument ([^\s/]+)\S*: ", r"\1: ", message))

    def _spelt(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        ours = "--" + flag[2:].replace("-", "_")
        return ours + equals + value if flag.startswith("--") and ours in self._option_string_actions else word

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"{_shown(value)} is none of {choices}")


class OptionsParser(Parser):
    """Flags of dataclasses of options, by their titles: a group for each, name, help and default from its fields.

    --help shows the flags of these names alone that `common` has, in that order; --help-all shows all.
    """

    def __init__(
        self,
        groups: Sequence[tuple[str, type[Options]]],
        description: str | None = None,
        common: Sequence[str] = (),
    ):
        super().__init__(description)
        # All flags at once would be twenty lines before the first that says what one is for.
        self.usage = "%(prog)s --FLAG VALUE ..."
        self._common = common
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all flags, in groups, and exit")
        self._groups = [options for _, options in groups]
        for title, options in groups:
            group = self.add_argument_group(title)
            kinds = kinds_of(options)
            for field in dataclasses.fields(options):
                _add_flag(group, field, kinds[field.name])

    @property
    def names(self) -> set[str]:
        """Names of the values that the dataclasses have."""
        return {field.name for options in self._groups for field in dataclasses.fields(options)}

    def add_to_help(self, flag: str, text: str) -> None:
        """Say more of a flag."""
        action = self._option_string_actions[f"--{flag}"]
        action.help = f"{action.help}{text}"

    def format_help(self) -> str:
        """What --help prints."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        formatter.start_section("what most runs set")
        known = [f"--{name}" for name in self._common if f"--{name}" in self._option_string_actions]
        formatter.add_arguments([self._option_string_actions[flag] for flag in (*known, "--help", "--help-all")])
        formatter.end_section()
        return formatter.format_help()

    def format_all_help(self) -> str:
        """What --help-all prints."""
        return super().format_help()

    def parse_options(self, words: Sequence[str]) -> list[Options]:
        """An object of each dataclass. Raises TransrecError for flags and values that are not as they should be."""
        given = vars(self.parse_args(words))
        return [options(**{f.name: given[f.name] for f in dataclasses.fields(options)}) for options in self._groups]


def _add_flag(group: Any, field: dataclasses.Field, kind: Any) -> None:
    argument: dict[str, Any] = dict(field.metadata)
    names = [f"--{field.name}", *argument.pop("aliases", ())]
    for ours in ("absolute", "decides"):
        argument.pop(ours, None)
    off = argument.pop("off", False if kind is bool else None)
    shorthands = argument.pop("shorthands", {})
    has_default = field.default is not dataclasses.MISSING
    argument["default"] = field.default if has_default else field.default_factory()
    if get_origin(kind) is Literal:
        argument["choices"] = get_args(kind)
    elif kind is bool:
        argument |= {"type": bool, "nargs": "?", "const": True, "metavar": "{true,false}"}
    elif lists := [of for of in (kind, *get_args(kind)) if get_origin(of) is list]:
        argument |= {"type": get_args(lists[0])[0], "nargs": "+"}
    else:
        # Of `str | None` the str.
        argument["type"] = next((of for of in get_args(kind) if of is not type(None)), kind)
    group.add_argument(*names, **argument)
    hidden = {"dest": field.name, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    if off is not None:
        group.add_argument(f"--no_{field.name}", action="store_const", const=off, **hidden)
    for name, value in shorthands.items():
        group.add_argument(name, action="store_const", const=value, **hidden)


class _HelpAll(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_all_help(), end="")
        parser.exit()


class _Help(argparse.RawDescriptionHelpFormatter):
    """Says of each flag that it is required, or its default and what turns it off."""

    def _get_help_string(self, action: argparse.Action) -> str:
        help, default = action.help or "", action.default
        if action.required and action.option_strings:
            return f"{help} (required)"
        if "(default" in help or action.nargs == 0 or default in (None, argparse.SUPPRESS, [], ""):
            return help
        if isinstance(default, bool):
            said = str(default).lower() + (f"; --no_{action.dest} turns it off" if default else "")
        else:
            said = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{help} (default: {said.replace('%', '%%')})"


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_shown(text)} is no number") from None


def _true_or_false(text: str) -> bool:
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"{_shown(text)} is neither true nor false")
    return text.lower() in TRUE


def _shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
