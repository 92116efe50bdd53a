"""Registries: the only way to find methods, objectives, user encoders and everything else that is chosen by name.

An entry is a class that registers itself under a name: in a module of its kind's package, in a module that an installed
package declares as an entry point of the group `transrec.plugins`, or in a file given by --plugin (transrec.plugins).
Its `Options`, a dataclass of flags, become flags of the runs that choose the entry, and of no others.
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
    """An entry that a run chose, with its name and the values of its flags."""

    name: str
    entry: type
    options: Options

    def build(self, *arguments: Any) -> Any:
        """Return an object of the entry, built from `arguments` and from the values of its flags as keywords."""
        return self.entry(*arguments, **self.options.as_dict())


def unknown_text(name: Any, known: Sequence[str]) -> str:
    """Return the text of a message about an unknown name: the most similar known names, and all known names."""
    near = difflib.get_close_matches(str(name), known, n=2)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown; {meant}choose from {', '.join(known)}"


class Registry(Generic[Entry]):
    """The entries of one kind, from its package, from installed plugins, and from files given by --plugin.

    Args:
        kind: the name of the kind, such as "user encoder"; the flag that chooses an entry is then --user_encoder.
        base: the class that entries derive from.
        package: the package whose modules register entries when they are imported, or a module that registers them.
        flag: the name of the flag, if it is not the kind's name.
        several: whether a run may choose any number of entries.
        always: names of the entries that every run chooses.
    """

    all_registries: ClassVar[list["Registry"]] = []

    def __init__(
        self,
        kind: str,
        base: type[Entry],
        package: str,
        flag: str = "",
        several: bool = False,
        always: tuple[str, ...] = (),
    ):
        self.all_registries.append(self)
        self.kind, self.base, self.package = kind, base, package
        self.flag, self.several, self.always = flag or kind.replace(" ", "_"), several, always
        self._entries: dict[str, type[Entry]] = {}
        self._places: dict[str, str] = {}
        # The current name of an entry, by each of its former names.
        self._former: dict[str, str] = {}
        self._is_complete = False

    def register(self, name: str, *former: str) -> Callable[[type[Entry]], type[Entry]]:
        """Return a class decorator that registers an entry under `name` and its `former` names.

        Raises TransrecError, naming file and line, if a name is taken, or if the entry does not derive from `base`.
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
        """Return the names of all entries, sorted."""
        self._discover()
        return sorted(self._entries)

    def current(self, name: str) -> str:
        """Return the current name of the entry that once had this name; any other name is returned unchanged."""
        self._discover()
        return self._former.get(name, name) if isinstance(name, str) else name

    def get(self, name: str, flag: str = "") -> type[Entry]:
        """Return the entry with this current or former name.

        Args:
            flag: the flag that gave the name; by default the registry's own.

        Raises TransrecError for an unknown name, with the most similar names.
        """
        name = self.current(name)
        if not isinstance(name, str) or name not in self._entries:
            raise TransrecError(f"--{flag or self.flag} {name}: {unknown_text(name, self.names())}")
        return self._entries[name]

    def place(self, name: str) -> str:
        """Return the place where an entry is registered, as FILE:LINE."""
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
    """Import the plugin modules of installed packages. Raises TransrecError if one cannot be imported."""
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
    """Remove all entries of a file from their registries."""
    for registry in Registry.all_registries:
        for name, place in list(registry._places.items()):
            if place.rpartition(":")[0] == str(path):
                del registry._entries[name], registry._places[name]
                registry._former = {old: new for old, new in registry._former.items() if new != name}
