"""A short form of the campaign of faults in campaign.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from campaign import short_form
from harness import ENVIRONMENT

SEED = 0
CAMPAIGN = Path(__file__).with_name("campaign.py")


@pytest.mark.long
def test_the_short_form(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(CAMPAIGN), "--short", "--seed", str(SEED), "--out", str(out)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert (out / "cases.json").exists(), done.stdout + done.stderr
    outcomes = json.loads((out / "cases.json").read_text())
    assert len(outcomes) == len(short_form(SEED))
    assert not [outcome for outcome in outcomes if outcome["failure"] or outcome["one_line"] != outcome["errors"]]
