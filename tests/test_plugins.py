"""Plugins: entries from outside the package, errors of invalid plugins, and that none runs unless its user names it."""

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from conftest import FEW_STEPS, run

from transrec import plugins, registry, settings
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.models.objectives import OBJECTIVES
from transrec.tracking import TRACKERS, Trackers

PLAIN = """
from pathlib import Path

from transrec.models.objectives import register
from transrec.models.objectives.bce import BCEObjective

with open(Path(__file__).with_name("ran"), "a") as file:
    file.write("once ")


@register("doubled")
class Doubled(BCEObjective):
    def __call__(self, *arguments):
        return 2 * super().__call__(*arguments)
"""


@pytest.fixture
def plugin(tmp_path):
    """Return a function that writes a plugin file; its entries are unregistered after the test."""
    written = []

    def write(text: str = PLAIN, name: str = "mine.py") -> Path:
        path = tmp_path / "plugins" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        written.append(path)
        return path

    yield write
    for path in written:
        plugins.unload(path)


@pytest.fixture
def finished(plugin, flags, tmp_path):
    """A plugin and the folder of a run with it; the plugin is unloaded, as in a new process."""
    path, folder = plugin(), tmp_path / "run"
    more = [*FEW_STEPS, "--epochs", "1", "--objective", "doubled"]
    run([*flags, *more, "--plugin", str(path), "--output", str(folder), "--keep_state"])
    plugins.unload(path)
    path.with_name("ran").unlink()
    return path, folder


def test_a_run_is_resumed_and_loaded_where_its_plugin_is_given_again(finished, tmp_path):
    path, folder = finished
    stored = json.loads((folder / "options.json").read_text())
    assert stored["plugin"] == [str(path)] and len(stored["files"][str(path)]) == 64
    for act in (load_run, lambda folder: run(["--resume", str(folder), "--epochs", "2"])):
        with pytest.raises(TransrecError, match=rf"the run needs the plugin {path}, and what a run names is never run"):
            act(folder)
    assert not path.with_name("ran").exists(), "it ran although nobody asked for it"
    assert run(["--resume", str(folder), "--epochs", "2", "--plugin", str(path)])["epochs_trained"] == 2
    # Only the content of the file counts, wherever it is.
    copy = path.rename(path.with_name("elsewhere.py"))
    plugins.unload(path)
    assert load_run(folder, plugins=[copy]).objective.__class__.__name__ == "Doubled"
    plugins.unload(copy)


def test_a_changed_plugin_is_refused_before_it_runs(finished):
    path, folder = finished
    path.write_text(PLAIN.replace("2 *", "3 *"))
    for act in (
        lambda: load_run(folder, plugins=[path]),
        lambda: run(["--resume", str(folder), "--plugin", str(path)]),
    ):
        with pytest.raises(TransrecError, match=rf"{path}: has changed since {folder} was started"):
            act()
    assert not path.with_name("ran").exists()


def test_a_plugin_runs_once_in_a_process_and_again_where_it_has_changed(plugin):
    path = plugin()
    plugins.load_plugins([path, path])
    plugins.load_plugins([path])
    assert path.with_name("ran").read_text() == "once "
    path.write_text(PLAIN.replace('"doubled"', '"tripled"'))
    plugins.load_plugins([path])
    assert "tripled" in OBJECTIVES.names() and "doubled" not in OBJECTIVES.names()


def test_an_entry_of_a_plugin_that_the_run_does_not_name(plugin, flags):
    path = plugin()
    plugins.load_plugins([path])
    with pytest.raises(TransrecError, match=rf"mine\.py:\d+: belongs to a plugin .* give it with --plugin {path}"):
        settings.parse([*flags, "--objective", "doubled"], "full", {})


TAKEN = """
from transrec.models.user_encoders import register
from transrec.models.user_encoders.sasrec import SASRec


@register("{}")
class Mine(SASRec):
    pass
"""
SHARES = """
from dataclasses import dataclass

from transrec.models.objectives import Objective, register
from transrec.options import Options, flag


@dataclass(frozen=True)
class Sharing(Options):
    {}: int = flag(1, "Whatever.")


@register("shares")
class Shares(Objective):
    Options = Sharing
"""


@pytest.mark.parametrize(
    "text,expected",
    [
        ("raise ValueError('no\\nluck')", r"mine.py:1: the plugin cannot be loaded \(ValueError: no luck\); mend it"),
        ("\nimport sys\nsys.exit(0)", r"mine.py:3: the plugin cannot be loaded \(SystemExit: 0\)"),
        (
            "import nothing_of_this_name",
            r"mine.py:1: .*\(ModuleNotFoundError: No module named 'nothing_of_this_name'\)",
        ),
        ("\ndef broken(:\n", r"mine.py:2: the plugin cannot be loaded \(SyntaxError: invalid syntax\)"),
        ("user_id\titem_id\n1\t2\n", r"mine.py:1: the plugin cannot be loaded \(SyntaxError: "),
        ("\0", r"mine.py(:1)?: the plugin cannot be loaded \((SyntaxError|ValueError): source code .* null bytes"),
        (TAKEN.format("sasrec"), r"mine.py:6: user encoder 'sasrec' is registered twice, first in .*sasrec.py:\d+$"),
        (
            TAKEN.format("a") + "\n\nregister('a')(Mine)\n",
            r"mine.py:11: .*'a' is registered twice, first in .*mine.py:6",
        ),
        (
            "from transrec.methods import register\n\n\n@register('mine')\nclass Mine:\n    pass\n",
            r"mine.py:4: method 'mine' must be a class derived from Method$",
        ),
        (
            "from transrec.methods import register\n\n\n@register('mine')\ndef mine():\n    pass\n",
            r"mine.py:4: method 'mine' must be a class derived from Method$",
        ),
        (
            SHARES.format("heads"),
            r"--heads: is a flag of objective shares \(.*mine.py:\d+\) and of user encoder sasrec",
        ),
        (SHARES.format("epochs"), r"--epochs: is a flag of objective shares \(.*mine.py:\d+\) and of training options"),
        (SHARES.format("method"), r"--method: is a flag of objective shares \(.*mine.py:\d+\) and of all runs"),
    ],
)
def test_a_bad_plugin_is_told_in_one_line(plugin, command, text, expected, capfd):
    before = {kind.flag: kind.names() for kind in settings.KINDS}
    path = plugin(text)
    words = ["--objective", "shares"] if "shares" in text else []
    status, line = command("--plugin", str(path), *words)
    assert status == 2 and re.search(expected, line), line
    assert line.startswith("error: ") and command.errors.count("\n") == 1
    plugins.unload(path)
    assert {kind.flag: kind.names() for kind in settings.KINDS} == before, "half of it stayed"


def test_two_plugins_of_one_name(plugin, command):
    first, second = plugin(), plugin(name="yours.py")
    status, line = command("--plugin", str(first), "--plugin", str(second), "--objective", "doubled")
    assert status == 2
    assert line.endswith(f"yours.py:11: objective 'doubled' is registered twice, first in {first}:11")


def test_a_plugin_that_is_not_there(command, tmp_path):
    status, line = command("--plugin", str(tmp_path / "none.py"))
    assert status == 2 and line.startswith(f"error: {tmp_path}/none.py: cannot be read (No such file or directory)")
    status, line = command("--plugin", str(tmp_path))
    assert status == 2 and f"{tmp_path}: is a folder" in line


def test_installed_packages_bring_entries(plugin, monkeypatch):
    path = plugin(name="of_a_package.py")
    monkeypatch.syspath_prepend(path.parent)
    points = [EntryPoint("doubled", "of_a_package", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    registry._load_installed.cache_clear()
    monkeypatch.setattr(OBJECTIVES, "_is_complete", False)
    assert "doubled" in OBJECTIVES.names()
    monkeypatch.delitem(sys.modules, "of_a_package")

    points[:] = [EntryPoint("broken", "nothing_of_this_name", registry.GROUP)]
    registry._load_installed.cache_clear()
    monkeypatch.setattr(OBJECTIVES, "_is_complete", False)
    with pytest.raises(TransrecError, match=r"its plugin nothing_of_this_name cannot be loaded \(ModuleNotFoundError"):
        OBJECTIVES.names()


@pytest.mark.parametrize("hook", ["__init__", "log", "finish", "close"])
def test_a_tracker_that_raises_is_named_in_one_line(hook, command, tmp_path):
    path = tmp_path / "broken_tracker.py"
    path.write_text(
        "from transrec.tracking import Tracker, register\n"
        "@register('broken')\n"
        "class Broken(Tracker):\n"
        f"    def {hook}(self, *given):\n"
        "        raise KeyError('no such board')\n"
    )
    try:
        status, line = command("--epochs", "1", "--plugin", str(path), "--tracker", "broken", method="frozen")
    finally:
        plugins.unload(path)
    assert status == 2
    assert f"tracker broken failed at {path}:5 (KeyError: 'no such board')" in line
    assert ("--resume" in line) == (hook != "__init__") == (tmp_path / "run").exists()
    assert (tmp_path / "run" / "result.json").exists() == (hook in ("finish", "close"))


NOTED = """
import json
from transrec.tracking import Tracker, register


class Noted(Tracker):
    closed = []

    def log(self, epochs):
        json.loads("{")

    def close(self):
        self.closed.append(type(self).__name__)
        raise ConnectionRefusedError(111, "Connection refused")


@register("one")
class One(Noted):
    pass


@register("other")
class Other(Noted):
    pass
"""


def test_all_trackers_are_closed_and_the_first_error_is_told(plugin, tmp_path, capsys):
    path = plugin(NOTED)
    plugins.load_plugins([str(path)])
    chosen = [registry.Choice(name, TRACKERS.get(name), TRACKERS.get(name).Options()) for name in ("one", "other")]
    refused = rf"failed at {path}:14 \(ConnectionRefusedError: \[Errno 111\] Connection refused\)"
    with pytest.raises(TransrecError, match=f"tracker other {refused}"), Trackers(tmp_path) as trackers:
        trackers.open(chosen)
    assert "tracker one failed" in capsys.readouterr().err
    # A library's failure names the tracker's line, not the library's, and precedes the failures of closing.
    logged = rf"tracker one failed at {path}:10 \(JSONDecodeError: "
    with pytest.raises(TransrecError, match=logged), Trackers(tmp_path) as trackers:
        trackers.open(chosen)
        trackers.log([])
    assert chosen[0].entry.closed == ["Other", "One"] * 2
    assert capsys.readouterr().err.count("ConnectionRefusedError") == 2
