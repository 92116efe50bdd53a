"""Shared fixtures and helpers: tiny backbones, small datasets, and the recorded numbers if they are available."""

import json
import os
import signal
import sys
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell that starts the tests in the background makes them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path

import numpy as np
import preloaded
import pytest
import torch

from transrec import modalities, runner
from transrec.arguments import Parser
from transrec.data.demo import Domain, make_domain_with_store, make_image_backbone, make_text_backbone
from transrec.options import ModelOptions

REPOSITORY = Path(__file__).resolve().parents[1]
ENCODERS = ("bert", "roberta")
IMAGE_KINDS = ("vit", "mae")
DECODER = "llama"
TEXT_KINDS = (*ENCODERS, DECODER)
BOTH = "bert+vit"
FEW_STEPS = ("--batch_size", "20")
SHARED = Path(os.environ.get("TRANSREC_SHARED", REPOSITORY.parent / "shared"))
GOLDEN = SHARED / "golden"
# The largest difference from the recorded numbers that is accepted.
TOLERANCES = {"cpu": 1e-5, "cuda": 1e-4}


@pytest.fixture(scope="session")
def golden() -> Path:
    if not GOLDEN.exists():
        pytest.skip(f"the recorded numbers are not at {GOLDEN}")
    return GOLDEN


@pytest.fixture(scope="session")
def scientific() -> Path:
    folder = SHARED / "data" / "Scientific"
    if not folder.exists():
        pytest.skip(f"the Scientific dataset is not at {folder}")
    return folder


@pytest.fixture
def device() -> torch.device:
    """Return the device on which recorded cases are computed."""
    return torch.device("cpu")


@pytest.fixture
def tolerance(device) -> float:
    """Return the accepted difference between numbers computed on `device` and the recorded numbers."""
    return TOLERANCES[device.type]


@pytest.fixture
def quick_starts(monkeypatch) -> None:
    """Make scripts run by `sys.executable` start at once, for tests that are not about how scripts start."""
    monkeypatch.setattr(sys, "executable", preloaded.python())


def read_case(folder: Path) -> tuple[dict, dict]:
    """Read meta.json and the arrays of io.npz of a recorded case."""
    with np.load(folder / "io.npz") as arrays:
        return json.loads((folder / "meta.json").read_text()), dict(arrays)


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> dict[str, Path]:
    """Tiny backbones by kind, saved in the Hugging Face format."""
    root = tmp_path_factory.mktemp("backbones")
    for kind in TEXT_KINDS:
        make_text_backbone(root / kind, hidden_size=32, layers=2, kind=kind)
    for kind in IMAGE_KINDS:
        make_image_backbone(root / kind, hidden_size=32, layers=2, mae=kind == "mae")
    return {kind: root / kind for kind in (*TEXT_KINDS, *IMAGE_KINDS)}


@pytest.fixture(scope="session")
def domain(tmp_path_factory) -> Path:
    """A small dataset: 60 users, 150 items with titles and images."""
    folder = tmp_path_factory.mktemp("data") / "small"
    make_domain_with_store(folder, Domain("small", users=60, items=150, longest=9, seed=3))
    return folder


@pytest.fixture
def flags(domain, backbones) -> list[str]:
    """Command-line flags of a run that takes seconds."""
    return run_flags(domain, backbones)


def run_flags(domain: Path, backbones: dict[str, Path]) -> list[str]:
    sizes = ["--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10", "--batch_size", "8"]
    return ["--dataset", str(domain), "--text_encoder", str(backbones["bert"]), *sizes, "--epochs", "2"]


@pytest.fixture
def command(flags, tmp_path, monkeypatch, capfd):
    """Return a function that runs a script's entry point for a few steps.

    It returns the exit status and the last line of standard error; its attribute `errors` holds all of standard error.
    """

    def call(*more: str, method: str = "houlsby") -> tuple[int, str]:
        words = (*flags, *FEW_STEPS, "--output", str(tmp_path / "run"), *more)
        arguments = more if "--resume" in more else fitting(words)
        monkeypatch.setattr(sys, "orig_argv", ["python", "adapter.py"])
        monkeypatch.setattr(sys, "argv", ["adapter.py", *arguments])
        capfd.readouterr()
        status = 0
        try:
            runner.adapt(method)
        except SystemExit as exit_:
            status = exit_.code
        call.errors = capfd.readouterr().err
        assert "Traceback" not in call.errors
        return status, (call.errors.splitlines() or [""])[-1]

    return call


@pytest.fixture(scope="session")
def unbroken_run(domain, backbones, tmp_path_factory) -> Path:
    """Folder of an uninterrupted run with the same flags as `command`."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run([*run_flags(domain, backbones), *FEW_STEPS, "--output", str(folder)], "houlsby")
    return folder


def encoder_flags(kind: str, backbones: dict[str, Path]) -> list[str]:
    """Return the command-line flags of a run over a kind of backbone, or over both kinds of KIND+KIND."""
    text, image = ("--text_encoder", "--image_encoder")
    if kind in TEXT_KINDS:
        return [text, str(backbones[kind])]
    workers = ["--image_workers", "0"]
    if kind in IMAGE_KINDS:
        return ["--item_tower", "image", image, str(backbones[kind]), *workers]
    first, second = kind.split("+")
    return ["--item_tower", "multimodal", text, str(backbones[first]), image, str(backbones[second]), *workers]


def fitting(words: Sequence[str], item_tower: str = "text") -> list[str]:
    """Return a command line without the flags of modalities that its run does not use."""
    if "--resume" in words:
        return [*words]
    parser = Parser(add_help=False)
    parser.add_argument("--item_tower", default=item_tower)
    parser.add_argument("--modalities", nargs="+", default=[])
    parsed = parser.parse_known_args(words)[0]
    modality_names = parsed.modalities or ModelOptions(item_tower=parsed.item_tower).modality_names
    others = [modalities.get(name).Options for name in modalities.names() if name not in modality_names]
    lacking = {f"--{flag}" for options in others for flag in options.defaults()}
    fitted, keep = [], True
    for word in words:
        if word.startswith("--"):
            keep = word not in lacking
        if keep:
            fitted.append(word)
    return fitted


def run(arguments: list[str], method: str = "full", **defaults) -> dict:
    """Run in this process and return the result."""
    words = fitting(arguments, defaults.get("item_tower", "text"))
    return runner.execute(runner.parse(words, method, defaults))
