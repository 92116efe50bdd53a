"""bench.py: rows are measured one by one, finished ones kept, failures reported; our step next to a plain one."""

import json
import runpy
import shlex
import sys
from argparse import Namespace

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))

from benchmarks import bench
from benchmarks.measured import FIGURES, report

SCRIPT = """
import json, os
told = {"tables": ["| a |"], "figures": {"times faster": 3.5}}
open(os.environ["TRANSREC_FIGURES"], "w").write(json.dumps(told))
"""


def test_what_a_script_tells_adds_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FIGURES, str(tmp_path / "figures.json"))
    report(["a"], [["1"]], {"seconds": 2.0})
    report(["b"], [["2"]])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["figures"] == {"seconds": 2.0} and "\n\n".join(figures["tables"]) in capsys.readouterr().out.replace(
        "|\n| b", "|\n\n| b"
    )


@pytest.mark.parametrize(
    "command",
    [
        "large_catalogue.py --items 300 --states 3 --steps 2 --batch_size 8",
        "topk.py --users 40 --items 500 --threads 1",
        "softmax.py --items 200 --positions 64 --way chunked",
        "distinct_items.py --dataset {domain}",
    ],
)
def test_a_script_measures(domain, monkeypatch, capsys, command):
    file, *flags = shlex.split(command.format(domain=domain))
    monkeypatch.syspath_prepend(bench.HERE)
    monkeypatch.setattr(sys, "argv", [file, *flags])
    runpy.run_path(str(bench.HERE / file), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_each_row_is_a_file():
    for rows in bench.ROWS.values():
        assert len({row.command for row in rows}) == len(rows)
        for row in rows:
            file, *flags = shlex.split(row.command)
            assert (REPOSITORY / flags[0] if file == "tests" else bench.HERE / file).exists(), row.command


@pytest.fixture
def rows(tmp_path, monkeypatch):
    (tmp_path / "one.py").write_text(SCRIPT)
    (tmp_path / "two.py").write_text("print('out of luck')\nraise SystemExit(3)")
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)")
    made = [
        bench.Row("that works", "one.py --flag 1", {"times faster": 3}, limits={"times faster": 3.2, "MiB": 1}),
        bench.Row("that fails", "two.py", {"times faster": 3}),
        bench.Row("that takes long", "slow.py", {}, seconds=1),
    ]
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "ROWS", {"cpu": made})
    return made


def test_a_row_that_fails_costs_no_other(rows, tmp_path):
    given = Namespace(device="cpu", out=tmp_path / "out", again=False)
    assert bench.main(given) == 1
    found = json.loads((given.out / "cpu.json").read_text())
    assert found["environment"]["torch"] and found["rows"]["one.py --flag 1"]["figures"] == {"times faster": 3.5}
    page = (given.out / "cpu.md").read_text()
    assert "times faster 3: reached; times faster 3.2 at most: missed; MiB 1 at most: missed" in page
    assert "failed: status 3" in page and "out of luck" in page
    assert "failed: not done after 1 s" in page


def test_the_same_command_goes_on_behind_finished_rows(rows, tmp_path, monkeypatch):
    given = Namespace(device="cpu", out=tmp_path / "out", again=False)
    bench.main(given)
    (tmp_path / "two.py").write_text("print('better')")
    measured = []
    monkeypatch.setattr(bench, "measure", lambda row: measured.append(row.command) or _nothing())
    assert bench.main(given) == 0
    assert measured == ["two.py", "slow.py"]
    monkeypatch.setattr(bench, "environment", lambda *world: {"torch": "another"})
    measured.clear()
    bench.main(given)
    assert len(measured) == 3


def _nothing():
    return {"tables": [], "figures": {}, "seconds": 0.0, "failed": None, "last": []}
