"""Every method that tests run over: those of the package, and those that docs/adding adds, each from its own file."""

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
    """Within, those of the names that are examples are methods, too."""
    files = [EXAMPLES[name] for name in names if name in EXAMPLES]
    try:
        load_plugins(files)
        yield
    finally:
        for file in files:
            unload(file)


def has(name: str, flag: str) -> bool:
    """Whether a method has that flag."""
    return flag in {field.name for field in fields(methods.get(name).Options)}


def choices(name: str, flag: str) -> list[str]:
    """The values that a method's flag may have; none where it has no such flag."""
    if not has(name, flag):
        return []
    named = list(get_args(get_type_hints(methods.get(name).Options)[flag]))
    return named or [*methods.PLACES, "item_last1", "all_last1"]


def small(name: str) -> dict[str, Any]:
    """Flags of a method for tiny models."""
    return small_of(methods.get(name).Options)


def small_of(options: type[Options]) -> dict[str, Any]:
    """Flags for tiny models: whole numbers are sizes, and none is larger than 8."""
    return {field.name: LARGEST for field in fields(options) if type(field.default) is int and field.default > LARGEST}


def small_flags(name: str) -> list[str]:
    """Those of `small` as words of a command line, which name the example's file too."""
    return [*plugin_flags(name), *words_of(small(name))]


def words_of(flags: dict[str, Any]) -> list[str]:
    """Flags as words of a command line."""
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


def plugin_flags(name: str) -> list[str]:
    """Words of a command line that name an example's file."""
    return ["--plugin", str(EXAMPLES[name])] if name in EXAMPLES else []
