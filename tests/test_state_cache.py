"""Files of hidden states in a folder: one for each combination of settings, made once; listing and removing them."""

import itertools
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, fitting, run
from transformers import AutoModel

from transrec import runner
from transrec.data.states import StateBuilder, StateFile
from transrec.locks import Lock


def cache_ahead(monkeypatch, capsys, *flags: str) -> tuple[list[Path], str]:
    """Run the caching script in this process; return the files that it names, and all that it printed."""
    monkeypatch.setattr(sys, "argv", ["cache_features.py", *fitting(flags)])
    capsys.readouterr()
    runner.cache()
    out, err = capsys.readouterr()
    return [Path(line.split()[1]) for line in out.splitlines() if line.startswith("cached ")], out + err


def test_states_of_every_meaning_lie_in_one_folder(flags, domain, backbones, tmp_path, monkeypatch, capsys):
    """No two different choices share a file, whatever differs; the same choice finds its own file again."""
    dataset = shutil.copytree(domain, tmp_path / "set", ignore=shutil.ignore_patterns("images"))
    flags = [*flags, "--dataset", str(dataset)]
    run([*flags, "--output", str(tmp_path / "source"), "--epochs", "1"])
    flags += ["--state_cache", str(tmp_path / "states")]
    axes = {
        "--side_layers": ("1", "2"),
        "--text_pooling": ("cls", "mean"),
        "--state_dtype": ("fp16", "fp32"),
        "--seed": ("0", "1"),
    }
    choices = [
        [word for pair in zip(axes, values, strict=True) for word in pair] + ["--random_backbone"]
        for values in itertools.product(*axes.values())
    ]
    other = shutil.copytree(backbones["bert"], tmp_path / "other" / "bert")
    model = AutoModel.from_pretrained(other)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias.add_(1.0)
    model.save_pretrained(other)
    choices += [
        [],
        ["--title_tokens", "5"],
        ["--precision", "bf16"],
        ["--text_encoder", str(other)],
        ["--checkpoint", str(tmp_path / "source")],
        ["--item_tower", "image", "--image_encoder", str(backbones["vit"])],
    ]
    file_lists = [cache_ahead(monkeypatch, capsys, *flags, *choice)[0] for choice in choices]
    titles = (dataset / "items.tsv").read_text()
    (dataset / "items.tsv").write_text(titles.replace("lamp", "lantern").replace("red", "ruby"))
    file_lists.append(cache_ahead(monkeypatch, capsys, *flags)[0])
    (dataset / "items.tsv").write_text(titles)
    files = [file for files in file_lists for file in files]
    assert len(set(files)) == len(files) == len(choices) + 1
    assert sorted(files) == sorted((tmp_path / "states").iterdir())
    again, output = cache_ahead(monkeypatch, capsys, *flags, *choices[3])
    assert again == file_lists[3] and "caching" not in output
    # The path of a backbone does not matter, nor does a larger limit on titles that are all shorter.
    elsewhere = shutil.copytree(backbones["bert"], tmp_path / "elsewhere")
    again, output = cache_ahead(monkeypatch, capsys, *flags, "--text_encoder", str(elsewhere), "--title_tokens", "30")
    assert again == file_lists[len(axes) ** 2] and "caching" not in output


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda content: content[:-100], "cut off"),
        (lambda content: b"nonsense", "not a file of hidden states"),
        (lambda content: content.replace(b"cls", b"max"), "something else"),
    ],
    ids=["cut off", "nonsense", "of another name"],
)
def test_damaged_states_are_made_again(flags, tmp_path, monkeypatch, capsys, damage, message):
    flags = [*flags, "--state_cache", str(tmp_path)]
    (file,), _ = cache_ahead(monkeypatch, capsys, *flags)
    content = file.read_bytes()
    in_use = StateFile(file, {}).states
    before = in_use.copy()
    file.unlink()
    file.write_bytes(damage(content))
    again, output = cache_ahead(monkeypatch, capsys, *flags)
    assert again == [file] and file.read_bytes() == content
    assert f"warning: {file}: " in output and message in output and "; it is made again" in output
    assert np.array_equal(in_use, before), "a run that has the old file open goes on"
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.fixture
def script(monkeypatch, capsys):
    """Return a function that runs scripts/states.py in this process; it returns exit status and all output."""

    def call(*words) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["states.py", *map(str, words)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(REPOSITORY / "scripts" / "states.py"), run_name="__main__")
        except SystemExit as exit_:
            status = exit_.code
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def used_on(path: Path, day: str) -> None:
    """Set the date on which a file was last used."""
    seconds = np.datetime64(day, "s").astype(int)
    os.utime(path, (seconds, seconds))


def test_files_are_listed_and_removed(flags, tmp_path, monkeypatch, capsys, script):
    states = tmp_path / "states"
    flags = [*flags, "--state_cache", str(states)]
    (old,), _ = cache_ahead(monkeypatch, capsys, *flags)
    (new,), _ = cache_ahead(monkeypatch, capsys, *flags, "--text_pooling", "mean", "--random_backbone", "--seed", "3")
    begun = StateBuilder(states / "states-text-bert-ffffffffffffffff.safetensors", (300, 2, 4), "fp32", {})
    begun.begin()
    (states / "states-image-vit.safetensors").write_bytes(b"of no release")
    for path in (old, begun.partial, states / "states-image-vit.safetensors"):
        used_on(path, "2026-01-10")
    status, output = script(tmp_path)
    assert status == 0 and output.startswith("4 files of hidden states, 0.0 MiB, below ")
    lines = {word: line for line in output.splitlines() for word in line.split() if word.startswith("states-")}
    made_of = "bert; states 0, 2; pooling cls; dtype fp16; precision fp32; 150 items of small"
    assert lines[old.name].endswith(f"0.0 MiB  last used 2026-01-10 00:00  {made_of}")
    assert "bert drawn by seed 3; states 0, 2; pooling mean" in lines[new.name]
    assert lines[begun.path.name].endswith("; in the making") and lines["states-image-vit.safetensors"].endswith(
        "damaged"
    )

    before = sorted(states.iterdir())
    since = ("--remove_unused_since", "2026-01-11")
    status, output = script(states, *since)
    assert status == 0 and output.count("would be removed\n") == 3 and new.name not in output
    assert sorted(states.iterdir()) == before, "nothing is removed unless --yes says so"
    in_use, making = StateFile(old, {}), Lock(states / f".{begun.path.name}.lock")
    status, output = script(states, *since, "--yes")
    assert output.count("stays, a run is using it") == 2 and output.count("; removed\n") == 1
    assert sorted(states.glob("*states*safetensors*")) == sorted({old, new, begun.partial, making.path})
    del in_use
    making.close()
    status, output = script(states, *since, "--yes")
    assert status == 0 and sorted(states.iterdir()) == [new]
    assert script(states, "--remove", new.name)[1].count("would be removed\n") == 1
    assert script(states, "--remove", new.name, "--yes")[0] == 0 and not list(states.iterdir())


def test_what_cannot_be_listed_or_removed(tmp_path, script):
    for words, message in (
        (["nowhere"], "nowhere: no such folder"),
        ([tmp_path, "--remove", "x"], "--remove x: no such file of hidden states"),
        ([tmp_path, "--remove_unused_since", "May"], "--remove_unused_since May: not a date like 2026-06-01"),
    ):
        status, output = script(*words)
        assert status == 2 and f"error: {message}" in output.replace(f"{Path.cwd()}/", "")
