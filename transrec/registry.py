"""Registries: the one way in which methods, objectives, user encoders and whatever else has a name are found.

An entry is a class that registers itself under a name, in a file of its kind's package, in a module that an installed
package names as an entry point of the group `transrec.plugins`, or in a file given by --plugin (transrec.plugins). Its
`Options`, a dataclass of flags, are flags of the runs that choose the entry, and of no others.
"""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from transrec.errors import TransrecError
from transrec.options import Options

GROUP = "transrec.plugins"

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Choice:
    """An entry that a run chose, by its name, and the values of its flags."""

    name: str
    entry: type
    options: Options

    def build(self, *arguments: Any) -> Any:
        """An object of the entry, made of `arguments` and the values of its flags by their names."""
        return self.entry(*arguments, **self.options.as_dict())


def unknown(name: Any, known: Sequence[str]) -> str:
    """What to say of a name that is none of those known: the nearest to it, and all."""
    near = difflib.get_close_matches(str(name), known, n=2)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown; {meant}choose from {', '.join(known)}"


class Registry(Generic[Entry]):
    """The entries of one kind: those of its package, of installed plugins, and of files given by --plugin.

    Args:
        kind: what an entry is called, "user encoder"; the flag that chooses one is --user_encoder.
        base: the class that entries derive from.
        package: whose modules register entries when they are imported; a module that registers them itself will do.
        flag: where it is not the kind's name.
        several: whether a run may choose any number of entries.
        always: names of those that every run chooses.
    """

    every: ClassVar[list["Registry"]] = []

    def __init__(
        self,
        kind: str,
        base: type[Entry],
        package: str,
        flag: str = "",
        several: bool = False,
        always: tuple[str, ...] = (),
    ):
        self.every.append(self)
        self.kind, self.base, self.package = kind, base, package
        self.flag, self.several, self.always = flag or kind.replace(" ", "_"), several, always
        self._entries: dict[str, type[Entry]] = {}
        self._places: dict[str, str] = {}
        # What an entry was called before, with what it is called now.
        self._former: dict[str, str] = {}
        self._is_complete = False

    def register(self, name: str, *former: str) -> Callable[[type[Entry]], type[Entry]]:
        """Class decorator: make an entry known by `name`, and by the names that it had before.

        Raises TransrecError, naming file and line, when the name is taken, and for what is no such entry.
        """
        frame = sys._getframe(1)
        place = f"{frame.f_code.co_filename}:{frame.f_lineno}"

        def add(entry: type[Entry]) -> type[Entry]:
            if not (isinstance(entry, type) and issubclass(entry, self.base)):
                raise TransrecError(f"{place}: {self.kind} {name!r} must be a class derived from {self.base.__name__}")
            if not f"{entry.__module__}.".startswith(f"{self.package}."):
                self._discover()
            for taken in (name, *former):
                if (known := self._former.get(taken, taken)) in self._entries:
                    first = self._places[known]
                    raise TransrecError(f"{place}: {self.kind} {taken!r} is registered twice, first in {first}")
            self._entries[name], self._places[name] = entry, place
            self._former |= dict.fromkeys(former, name)
            return entry

        return add

    def names(self) -> list[str]:
        """Names of all entries, sorted."""
        self._discover()
        return sorted(self._entries)

    def current(self, name: str) -> str:
        """What an entry is called now that may be known by a name that it had before; any other name as it is."""
        self._discover()
        return self._former.get(name, name) if isinstance(name, str) else name

    def get(self, name: str) -> type[Entry]:
        """The entry of that name, or that had it before.

        Raises TransrecError for an unknown one, with the names nearest to it.
        """
        name = self.current(name)
        if not isinstance(name, str) or name not in self._entries:
            raise TransrecError(f"--{self.flag} {name}: {unknown(name, self.names())}")
        return self._entries[name]

    def place(self, name: str) -> str:
        """Where an entry is registered: FILE:LINE."""
        self.get(name)
        return self._places[self.current(name)]

    def _discover(self) -> None:
        if not self._is_complete:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(getattr(package, "__path__", []), f"{self.package}."):
                importlib.import_module(module.name)
            self._is_complete = True
            _load_installed()


@cache
def _load_installed() -> None:
    """Import the modules that installed packages name. Raises TransrecError for one that cannot be imported."""
    for point in entry_points(group=GROUP):
        try:
            importlib.import_module(point.module)
        except Exception as error:
            package = point.dist.name if point.dist else "an installed package"
            raise TransrecError(
                f"{package}: its plugin {point.value} cannot be loaded ({type(error).__name__}: {error}); mend it, or "
                f"uninstall the package"
            ) from error


def forget(path: Path) -> None:
    """Take all entries of a file out of their registries."""
    for registry in Registry.every:
        for name, place in list(registry._places.items()):
            if place.rpartition(":")[0] == str(path):
                del registry._entries[name], registry._places[name]
                registry._former = {old: new for old, new in registry._former.items() if new != name}
