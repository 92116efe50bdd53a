"""The Makefile: the Python that it selects, its message if there is none, and the files that it removes."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from transrec.data.demo import IMAGE_BACKBONE, TEXT_BACKBONE

TOOLS = ("make", "sh", "grep", "touch", "rm", "rmdir", "find")
pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")
PYTHONS = {
    "fit": 'exec "{python}" "$@"',
    "old": 'exec "{python}" -c "import sys; sys.version_info = (3, 10, 9); exec(sys.argv[2])" "$@"',
    "bare": 'exec "{python}" -c "import sys; sys.modules[\'ensurepip\'] = None; exec(sys.argv[2])" "$@"',
    "broken": "echo pyenv: command not found >&2; exit 127",
}


@pytest.fixture
def make(tmp_path):
    """Return a function that runs make in a copy of the repository's top, with only the given Pythons on the path."""
    for name in ("Makefile", "requirements.txt", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)

    def call(*arguments: str, status: int = 0, **pythons: str) -> str:
        path = tmp_path / "bin"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for tool in TOOLS:
            (path / tool).symlink_to(shutil.which(tool))
        for name, kind in pythons.items():
            file = path / name.replace("_", ".")
            file.write_text(f"#!/bin/sh\n{PYTHONS[kind].format(python=sys.executable)}\n")
            file.chmod(0o755)
        environment = {"PATH": str(path)} | {key: os.environ[key] for key in ("HOME",) if key in os.environ}
        command = ["make", "--no-print-directory", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stderr if status else done.stdout

    return call


@pytest.mark.parametrize(
    ("pythons", "taken"),
    [
        ({"python3_11": "fit"}, "python3.11"),
        ({"python3_12": "fit", "python3_11": "fit"}, "python3.12"),
        ({"python3_13": "broken", "python3_12": "bare", "python3": "fit"}, "python3"),
        ({"python3": "old", "python": "fit"}, "python"),
    ],
)
def test_the_first_python_that_fits_is_taken(make, pythons, taken):
    assert make("-n", "demo", **pythons).splitlines()[0] == f"{taken} -m venv .venv"


def test_the_python_that_is_named_is_taken(make):
    assert make("-n", "demo", "PYTHON=python3.12", python3_13="fit", python3_12="fit").startswith("python3.12 -m venv")


@pytest.mark.parametrize(
    ("arguments", "pythons", "told"),
    [
        ([], {}, "no Python that can be used: python3.13 is not there, python3.12 is not there, python3.11 is not"),
        ([], {"python3": "old"}, "python3 is older than 3.11, python is not there, install Python 3.11 or newer, or "),
        ([], {"python3_11": "bare"}, "python3.11 is without its venv module (on Debian and Ubuntu: apt install python"),
        (["PYTHON=nowhere/python"], {"python3": "fit"}, "nowhere/python is not there; name another Python with PYTHON"),
        (["PYTHON=python3"], {"python3": "old"}, "python3 is older than 3.11; name another Python with PYTHON="),
    ],
)
def test_what_is_missing_is_told_in_one_line(make, tmp_path, arguments, pythons, told):
    output = make("demo", *arguments, status=2, **pythons)
    assert told in output and len(output.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_another_torch(make):
    index = "https://download.pytorch.org/whl/cpu"
    lines = make("-n", "test", f"TORCH_INDEX={index}", python3="fit").splitlines()
    (torch,) = (
        number for number, line in enumerate(lines) if f"pip install --no-compile --index-url {index} $(grep" in line
    )
    assert "--editable" in lines[torch + 1], "before all else, which then finds it there"
    assert re.findall("^torch.*", (REPOSITORY / "requirements.txt").read_text(), re.MULTILINE) == [
        "torch>=2.6",
        "torchvision",
    ]
    assert "index-url" not in make("-n", "test", python3="fit")


def test_clean_removes_what_the_demo_made_and_nothing_else(make, tmp_path):
    made = [
        *("Dataset/demo/source", f"pretrained_models/{TEXT_BACKBONE}", f"pretrained_models/{IMAGE_BACKBONE}"),
        *("runs/quickstart/text-source", "runs/docs", ".venv", "transrec/data/__pycache__", "tests/__pycache__"),
    ]
    own = ["runs/mine", "Dataset/mine", "pretrained_models/mine", "pretrained_models/demo-bert-mine", "transrec/data"]
    for folder in made + own:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    make("clean")
    assert not [folder for folder in made if (tmp_path / folder).exists()]
    assert all((tmp_path / folder).is_dir() for folder in own)
    (tmp_path / "runs/mine").rmdir()
    make("clean")
    assert not (tmp_path / "runs").exists()


def test_the_makefile_and_setup_name_the_same_pythons():
    named = re.findall(r"python(3\.\d+)", (REPOSITORY / "Makefile").read_text().partition("PYTHON ?=")[0])
    classified = re.findall(r"Python :: (3\.\d+)", (REPOSITORY / "setup.py").read_text())
    assert classified == sorted(set(named), key=lambda version: int(version[2:])) == ["3.11", "3.12", "3.13"]
