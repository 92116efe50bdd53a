"""A short form of the campaign of faults: what campaign.py tries at length."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import short_form
from harness import ENVIRONMENT

SEED = 0
CAMPAIGN = Path(__file__).with_name("campaign.py")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, dict]:
    """What came of each case, by kind and name."""
    out = tmp_path_factory.mktemp("faults") / "out"
    command = [sys.executable, str(CAMPAIGN), "--short", "--seed", str(SEED), "--out", str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert (out / "cases.json").exists(), done.stdout + done.stderr
    return {
        f"{outcome['kind']}: {outcome['name']}": outcome for outcome in json.loads((out / "cases.json").read_text())
    }


@pytest.mark.parametrize("case", map(str, short_form(SEED)))
def test_a_fault(outcomes, case):
    outcome = outcomes[case]
    if outcome["skipped"]:
        pytest.skip(outcome["skipped"])
    assert not outcome["failure"], outcome["failure"]
    assert outcome["one_line"] == outcome["errors"]
