"""What tests share: tiny backbones and datasets made on the spot, and the recorded numbers where they exist."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
GOLDEN = SHARED / "golden"


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


def read_case(folder: Path) -> tuple[dict, dict]:
    """meta.json and the arrays of io.npz of a recorded case."""
    with np.load(folder / "io.npz") as arrays:
        return json.loads((folder / "meta.json").read_text()), dict(arrays)
