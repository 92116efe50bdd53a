"""The first things that a new user meets: the package's public names, its licence and its citation."""

import inspect
import json
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY

import transrec


def test_public_names_are_imported_when_asked_for():
    code = (
        "import json, sys, transrec; light = 'torch' not in sys.modules; public = set(transrec.__all__)\n"
        "listed = public <= set(dir(transrec))\n"
        "from transrec import *; print(json.dumps([light, listed, sorted(public - set(globals()))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout) == [True, True, []], done.stderr


def test_public_names_are_documented_and_no_others_are_there():
    assert all(inspect.getdoc(getattr(transrec, name)) for name in transrec.__all__)
    with pytest.raises(AttributeError, match="module 'transrec' has no attribute 'load_runs'"):
        _ = transrec.load_runs


def test_the_citation_names_the_project_and_both_papers():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version": "1.2.0", "title": "transrec", "license": "Apache-2.0"}.items() <= cited.items()
    assert cited["message"] and cited["authors"]
    assert [paper["doi"] for paper in cited["references"]] == ["10.1145/3616855.3635805", "10.1145/3626772.3657725"]
    assert all(paper["type"] and paper["title"] and paper["authors"] for paper in cited["references"])
