"""All methods that tests run over: those of the package and those of docs/adding, each loaded from its own file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from conftest import REPOSITORY

from transrec import methods
from transrec.options import Options
from transrec.plugins import load_plugins, unload

ADDING = REPOSITORY / "docs" / "adding"
REGISTERS = re.compile(r'^from transrec\.methods import [^\n]*\bregister$.*^@register\("(\w+)"\)$', re.DOTALL | re.M)
# The file of each example that registers a method.
EXAMPLES = {match[1]: path for path in sorted(ADDING.glob("*.py")) if (match := REGISTERS.search(path.read_text()))}
PACKAGED = [name for name in methods.names() if methods.get(name).__module__.startswith("transrec.")]
LARGEST = 8


@contextmanager
def registered(names: list[str]) -> Iterator[None]:
    """Register those of the named methods that are examples, within the context."""
    files = [EXAMPLES[name] for name in names if name in EXAMPLES]
    try:
        load_plugins(files)
        yield
    finally:
        for file in files:
            unload(file)


def has(name: str, flag: str) -> bool:
    """Return whether a method has the flag."""
    return flag in {field.name for field in fields(methods.get(name).Options)}


def choices(name: str, flag: str) -> list[str]:
    """Return the values that a method's flag may have; an empty list if the method has no such flag."""
    if not has(name, flag):
        return []
    named = list(get_args(get_type_hints(methods.get(name).Options)[flag]))
    return named or [*methods.PLACES, "item_last1", "all_last1"]


def small(name: str) -> dict[str, Any]:
    """Return flags of a method for tiny models."""
    return small_of(methods.get(name).Options)


def small_of(options: type[Options]) -> dict[str, Any]:
    """Return flags for tiny models: integers are treated as sizes, and reduced to at most 8."""
    return {field.name: LARGEST for field in fields(options) if type(field.default) is int and field.default > LARGEST}


def small_flags(name: str) -> list[str]:
    """Return the flags of `small` as words of a command line, which also names the example's file."""
    return [*plugin_flags(name), *words_of(small(name))]


def words_of(flags: dict[str, Any]) -> list[str]:
    """Return flags as words of a command line."""
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


def plugin_flags(name: str) -> list[str]:
    """Return the words of a command line that name an example's file."""
    return ["--plugin", str(EXAMPLES[name])] if name in EXAMPLES else []
