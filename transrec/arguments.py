"""Command lines: flags defined by dataclasses of options, and one-line error messages that suggest similar names."""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args, get_origin

from transrec.errors import TransrecError
from transrec.options import Options, flag_types

FLAG = re.compile(r"--?[A-Za-z]\S*")
TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


def no_such_flag(flag: str, known: Collection[str]) -> TransrecError:
    """Return the error for an unknown flag; it suggests the known flags with the most similar names."""
    # Compare without leading hyphens, which all flags share and which would make any two flags seem similar.
    names = {known_flag.lstrip("-"): known_flag for known_flag in known}
    near = [names[name] for name in difflib.get_close_matches(flag.lstrip("-"), names, n=2, cutoff=0.7)]
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    help = "--help-all" if "--help-all" in known else "--help"
    return TransrecError(f"{flag}: no such flag; {meant}{help} lists them")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a mistake as a TransrecError of one line.

    Flags are written with underscores; hyphens in place of them are accepted too.
    """

    def __init__(self, description: str | None = None, add_help: bool = True):
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False, add_help=add_help)
        for kind, convert in ((int, _whole_number), (float, _number), (bool, _true_or_false)):
            self.register("type", kind, convert)

    @property
    def flags(self) -> list[str]:
        """All flags that the parser knows, with their hyphens."""
        return [flag for flag in self._option_string_actions if flag.startswith("--")]

    def unknown(self, words: Sequence[str]) -> list[str]:
        """Return the flags among `words` that the parser does not know."""
        flags = [
            self._with_underscores(word).partition("=")[0] for word in words if FLAG.fullmatch(word.partition("=")[0])
        ]
        return [flag for flag in flags if flag not in self._option_string_actions]

    def given(self, words: Sequence[str]) -> set[str]:
        """Return the names of the values that the flags among `words` set."""
        flags = (self._with_underscores(word).partition("=")[0] for word in words)
        return {self._option_string_actions[flag].dest for flag in flags if flag in self._option_string_actions}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        """Parse the arguments. Raises TransrecError where argparse would print its usage and exit."""
        words = sys.argv[1:] if args is None else args
        # Check this first: argparse may report only the value of a misspelt flag, as a superfluous argument.
        for flag in self.unknown(words):
            raise no_such_flag(flag, self.flags)
        return super().parse_args(words, namespace)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None):
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([self._with_underscores(word) for word in words], namespace)

    def error(self, message: str):
        """Raise TransrecError. argparse calls this method with its own message about a mistake."""
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            message = f"{missing[1]}: missing; --help says what to give"
        elif stray := re.fullmatch(r"unrecognized arguments: (.*)", message):
            message = f"unknown: {stray[1]}; --help shows how to call this"
        # Call a flag that has several names by the first one.
        raise TransrecError(re.sub(r"^argument ([^\s/]+)\S*: ", r"\1: ", message))

    def _with_underscores(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        ours = "--" + flag[2:].replace("-", "_")
        return ours + equals + value if flag.startswith("--") and ours in self._option_string_actions else word

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"{_short_repr(value)} is none of {choices}")


class OptionsParser(Parser):
    """A parser whose flags are the fields of dataclasses of options.

    Each dataclass in `groups` comes with a title and becomes one group of flags. Its fields give the flags' names, help
    texts and defaults. --help shows only the flags named in `common`, in that order; --help-all shows all flags.
    """

    def __init__(
        self,
        groups: Sequence[tuple[str, type[Options]]],
        description: str | None = None,
        common: Sequence[str] = (),
    ):
        super().__init__(description)
        # argparse's own usage would list all flags: twenty lines before the first explanation of a flag.
        self.usage = "%(prog)s --FLAG VALUE ..."
        self._common = common
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all flags, in groups, and exit")
        self._groups = [options for _, options in groups]
        for title, options in groups:
            group = self.add_argument_group(title)
            types = flag_types(options)
            for field in dataclasses.fields(options):
                _add_flag(group, field, types[field.name])

    @property
    def names(self) -> set[str]:
        """Names of all fields of the dataclasses."""
        return {field.name for options in self._groups for field in dataclasses.fields(options)}

    def add_to_help(self, flag: str, text: str) -> None:
        """Append text to the help of a flag."""
        action = self._option_string_actions[f"--{flag}"]
        action.help = f"{action.help}{text}"

    def format_help(self) -> str:
        """Return the text that --help prints."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        formatter.start_section("what most runs set")
        known = [f"--{name}" for name in self._common if f"--{name}" in self._option_string_actions]
        formatter.add_arguments([self._option_string_actions[flag] for flag in (*known, "--help", "--help-all")])
        formatter.end_section()
        return formatter.format_help()

    def format_all_help(self) -> str:
        """Return the text that --help-all prints."""
        return super().format_help()

    def parse_options(self, words: Sequence[str]) -> list[Options]:
        """Return one object of each dataclass. Raises TransrecError for unknown or missing flags and invalid values."""
        values = vars(self.parse_args(words))
        return [options(**{f.name: values[f.name] for f in dataclasses.fields(options)}) for options in self._groups]


def _add_flag(group: Any, field: dataclasses.Field, kind: Any) -> None:
    argument: dict[str, Any] = dict(field.metadata)
    names = [f"--{field.name}", *argument.pop("aliases", ())]
    for not_for_argparse in ("absolute", "affects_results"):
        argument.pop(not_for_argparse, None)
    off = argument.pop("off", False if kind is bool else None)
    shorthands = argument.pop("shorthands", {})
    has_default = field.default is not dataclasses.MISSING
    argument["default"] = field.default if has_default else field.default_factory()
    if get_origin(kind) is Literal:
        argument["choices"] = get_args(kind)
    elif kind is bool:
        argument |= {"type": bool, "nargs": "?", "const": True, "metavar": "{true,false}"}
    elif lists := [part for part in (kind, *get_args(kind)) if get_origin(part) is list]:
        argument |= {"type": get_args(lists[0])[0], "nargs": "+"}
    else:
        # For `str | None` the type is str.
        argument["type"] = next((part for part in get_args(kind) if part is not type(None)), kind)
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
    """Adds to the help of each flag that it is required, or its default and the flag that turns it off."""

    def _get_help_string(self, action: argparse.Action) -> str:
        help, default = action.help or "", action.default
        if action.required and action.option_strings:
            return f"{help} (required)"
        if "(default" in help or action.nargs == 0 or default in (None, argparse.SUPPRESS, [], ""):
            return help
        if isinstance(default, bool):
            text = str(default).lower() + (f"; --no_{action.dest} turns it off" if default else "")
        else:
            text = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{help} (default: {text.replace('%', '%%')})"


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_short_repr(text)} is not a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{_short_repr(text)} is not a number") from None


def _true_or_false(text: str) -> bool:
    if text.lower() not in (*TRUE, *FALSE):
        raise argparse.ArgumentTypeError(f"{_short_repr(text)} is neither true nor false")
    return text.lower() in TRUE


def _short_repr(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
