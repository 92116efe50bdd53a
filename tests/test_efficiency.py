"""TPME, and measuring what methods cost."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, run

from transrec.errors import TransrecError
from transrec.reports import efficiency
from transrec.reports.tpme import WEIGHTS, tpme
from transrec.training.profiler import Clock

pytestmark = pytest.mark.usefixtures("quick_starts")


def test_tpme_by_hand():
    # Times 0, 1/4 and 1 of the way from least to most; parameters 1, 0, 1/2; memory 0, 1, 1/2.
    values = tpme([10, 20, 50], [30, 10, 20], [1, 3, 2])
    assert values == pytest.approx([0.1, 0.45 * 0.25 + 0.45, 0.45 + 0.1 * 0.5 + 0.45 * 0.5])
    assert tpme([10, 20, 50], [30, 10, 20], [1, 3, 2], (1.0, 0.0, 0.0)) == pytest.approx([0, 0.25, 1])
    assert sum(WEIGHTS) == 1


def test_tpme_of_one_method_of_equal_values_and_of_none():
    assert tpme([7], [8], [9]) == [0]
    assert tpme([5, 5], [1, 3], [2, 2]) == pytest.approx([0, 0.1])
    assert tpme([], [], []) == []


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.5), (1.5, -0.5, 0.0)])
def test_tpme_refuses_weights_that_are_no_shares(weights):
    with pytest.raises(TransrecError, match="must not be negative and must sum to 1"):
        tpme([1, 2], [1, 2], [1, 2], weights)


def test_a_clock_adds_up_by_phase(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = Clock(torch.device("cpu"), exact=True)
    for phase in ("feed", "forward", "feed", None, "feed"):
        clock.enter(phase)
    assert clock.seconds == {"feed": 1.0 + 3.0, "forward": 2.0}


def test_the_phases_of_an_epoch_are_parts_of_its_seconds(flags, tmp_path):
    result = run([*flags, "--output", str(tmp_path)], "houlsby")
    assert set(result["phase_seconds"]) == {"feed", "forward", "backward", "step"}
    assert 0 < sum(result["phase_seconds"].values()) <= result["seconds_per_epoch"]
    assert result["peak_host_memory_mib"] > 100


def test_the_table_and_the_plot(tmp_path):
    results = {
        name: {
            "test": {"HR@10": score, "NDCG@10": score / 2},
            "trainable_parameters": parameters,
            "seconds_per_epoch": seconds,
            "peak_memory_mib": memory,
            "peak_host_memory_mib": 9.0,
            "phase_seconds": {"feed": 0.5, "forward": 1.0},
        }
        for name, score, parameters, seconds, memory in (
            ("full", 0.2, 1000, 10.0, 400.0),
            ("iisan", 0.25, 100, 1.0, 40.0),
        )
    }
    assert efficiency.tpme_by_method(results, WEIGHTS) == {"full": 1.0, "iisan": 0.0}
    first, _, full, iisan = efficiency.table(results, WEIGHTS).splitlines()
    assert "TPME" in first and full.rstrip("| ").endswith("1.000") and iisan.rstrip("| ").endswith("0.000")
    efficiency.plot(results, WEIGHTS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_the_efficiency_script(tmp_path):
    command = [sys.executable, str(REPOSITORY / "scripts" / "efficiency.py"), "--synthetic", "60,160", "--tiny"]
    command += ["--methods", "run_frozen", "run_IISAN_cached", "--epochs", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "efficiency.json").read_text())
    assert list(content) == ["run_frozen", "run_IISAN_cached"]
    table = (tmp_path / "out" / "efficiency.md").read_text().strip()
    assert table in done.stdout and "iisan over titles and images" in table
    assert (tmp_path / "out" / "efficiency.png").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0 and "$ " not in again.stdout, "what is done is not run again"
    other = subprocess.run([*command, "--batch_size", "7"], capture_output=True, text=True, timeout=60)
    assert other.returncode == 2 and "cannot be resumed with --batch_size 7" in other.stderr
    elsewhere = subprocess.run([*command, "--dataset", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert elsewhere.returncode == 2 and "run_frozen failed, see above; the same" in elsewhere.stderr
    wrong = subprocess.run([*command, "--synthetic", "many"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "--synthetic many: give two numbers" in wrong.stderr
