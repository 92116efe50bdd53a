"""Plugins: Python files that register entries. A plugin is executed only if the user names it.

The options of a run list the plugins that it needs, but reading the options executes nothing: to read the run, the user
must name the plugins again.
"""

import hashlib
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from transrec.errors import TransrecError, about_file
from transrec.paths import file_sha256, resolve
from transrec.registry import forget
from transrec.untrusted import read_regular

PLUGIN_BYTES = 2**24
# SHA-256 of the source that was executed, by file.
_loaded: dict[Path, str] = {}


def load_plugins(files: Iterable[str | Path]) -> None:
    """Execute each file once per process, and again if it has changed since.

    Raises TransrecError naming the file, and the line if there is one, if the file is missing, is not Python, raises an
    exception, or registers an invalid entry; none of its entries stays registered then.
    """
    for file in files:
        _load(resolve(file))


def _load(path: Path) -> None:
    with about_file(path, "give another file with --plugin", "cannot be read"):
        source = read_regular(path, PLUGIN_BYTES)
    digest = hashlib.sha256(source).hexdigest()
    if _loaded.get(path) == digest:
        return
    unload(path)
    module = ModuleType(f"transrec_plugin_{digest[:12]}_{path.stem}")
    # Dataclasses look up the meaning of their annotations in sys.modules.
    sys.modules[module.__name__] = module
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        unload(path)
        raise _plugin_error(path, error) from error
    _loaded[path] = digest


def unload(path: Path) -> None:
    """Remove all entries that the plugin in a file has registered."""
    forget(path)
    _loaded.pop(path, None)


def _plugin_error(path: Path, error: BaseException) -> TransrecError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename in (str(path), None):
        lines = [error.lineno or 1]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    if isinstance(error, TransrecError):
        return error if str(error).startswith(str(path)) else TransrecError(f"{place}: {error}")
    what = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
    return TransrecError(
        f"{place}: the plugin cannot be loaded ({type(error).__name__}: {what}); mend it, or leave it out"
    )


def check_named(place: str, plugins: Sequence[str]) -> None:
    """Raise TransrecError if FILE:LINE is in a loaded plugin that is not among `plugins`."""
    path = place.rpartition(":")[0]
    if Path(path) in _loaded and path not in plugins:
        raise TransrecError(f"{place}: belongs to a plugin that this run does not name; give it with --plugin {path}")


def plugin_hashes(files: Iterable[str | Path]) -> dict[str, str]:
    """Return the SHA-256 of each plugin file by path."""
    return {str(resolve(file)): file_sha256(resolve(file)) for file in files}


def load_required_plugins(stored: dict[str, Any], plugins: Sequence[str | Path], path: Path) -> None:
    """Load `plugins`, which must include all that the options `stored` in the file at `path` need.

    Raises TransrecError before any plugin is executed if a needed plugin is missing or has changed, and the errors of
    `load_plugins`.
    """
    needed, files = stored.get("plugin", []), stored.get("files", {})
    if not (isinstance(needed, list) and isinstance(files, dict)):
        raise TransrecError(f"{path}: --plugin {needed!r}: must be a list of texts; restore the file")
    now = plugin_hashes(plugins)
    for plugin in map(str, needed):
        if files.get(plugin) in now.values():
            continue
        if plugin in now:
            raise TransrecError(
                f"{plugin}: has changed since {path.parent} was started; restore it, or start a new run"
            )
        raise TransrecError(
            f"{path}: the run needs the plugin {plugin}, and what a run names is never run by itself: look into it, "
            f"then give it with --plugin, or to load_run as plugins=[...]"
        )
    load_plugins(plugins)
