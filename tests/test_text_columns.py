"""An item's text: columns of its items file, joined by a template or encoded separately."""

from pathlib import Path
from shutil import copyfile

import pytest
import torch
from conftest import encoder_flags, run
from safetensors.torch import load_file

from transrec.data.demo import IMAGE_STORE
from transrec.errors import TransrecError
from transrec.finished import load_run
from transrec.runner import parse


def described(domain: Path, folder: Path, lines: list[str]) -> Path:
    """Copy the dataset with another items file."""
    folder.mkdir()
    copyfile(domain / "users.tsv", folder / "users.tsv")
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")
    return folder


def columns(domain: Path) -> list[tuple[str, str, str]]:
    """Return id, brand and the rest of the title of each item; every tenth item has no brand."""
    rows = []
    for number, line in enumerate((domain / "items.tsv").read_text().splitlines()):
        item, title = line.split("\t")
        brand, rest = title.split(" ", 1)
        rows.append((item, brand if number % 10 else "", rest))
    return rows


def test_a_template_makes_the_text_that_a_title_would_be(flags, domain, tmp_path):
    rows = columns(domain)
    joined = described(domain, tmp_path / "joined", [f"{item}\t{rest}. By {brand}" for item, brand, rest in rows])
    apart = ["item_id\tbrand\ttitle", *map("\t".join, rows)]
    given = [*flags, "--title_tokens", "9", "--epochs", "1"]
    expected = run([*given, "--dataset", str(joined), "--output", str(tmp_path / "first")])
    template = [
        "--text_template",
        "{title}. By {brand}",
        "--dataset",
        str(described(domain, tmp_path / "apart", apart)),
    ]
    result = run([*given, *template, "--output", str(tmp_path / "second")])
    assert result["test"] == expected["test"] and result["validation"] == expected["validation"]
    weights = [load_file(tmp_path / which / "checkpoints/best.safetensors") for which in ("first", "second")]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def attribute_flags(domain: Path, folder: Path) -> list[str]:
    """Return flags of a run over titles and brands, as two attributes."""
    rows = ["item_id\tbrand\ttitle", *map("\t".join, columns(domain))]
    attributes = ["--text_attributes", "Title", "brand", "--attribute_tokens", "6", "4"]
    return ["--dataset", str(described(domain, folder, rows)), *attributes]


@pytest.mark.parametrize("method", ["houlsby", "prompt"])
def test_a_run_over_attributes_resumes_and_loads(flags, domain, tmp_path, method):
    given = [*flags, *attribute_flags(domain, tmp_path / "set"), "--train_recommender", "yes"]
    whole = run([*given, "--output", str(tmp_path / "whole")], method)
    run([*given, "--epochs", "1", "--keep_state", "--output", str(tmp_path / "run")], method)
    resumed = run(["--resume", str(tmp_path / "run"), "--epochs", "2"], method)
    assert resumed["test"] == whole["test"]
    assert "texts       title (6 word pieces), brand (4 word pieces)" in (tmp_path / "run/log.txt").read_text()
    with pytest.raises(TransrecError, match=r"--attribute_tokens \[6, 5\] \(was \[6, 4\]\)"):
        parse(["--resume", str(tmp_path / "run"), "--attribute_tokens", "6", "5"], method, {})
    tower = load_run(tmp_path / "run").item_encoder
    texts = [(torch.tensor([[2, 9, 3]]), torch.ones(1, 3).long()), (torch.tensor([[2, 3]]), torch.ones(1, 2).long())]
    with torch.no_grad():
        title, brand = (tower(*text) for text in texts)
        torch.testing.assert_close(tower(*texts[0], *texts[1]), (title + brand) / 2)
        assert not torch.allclose(title, brand)


def test_attributes_beside_images(flags, domain, backbones, tmp_path):
    given = [*flags, *attribute_flags(domain, tmp_path / "set"), "--images", str(domain / IMAGE_STORE), "--epochs", "1"]
    run([*given, *encoder_flags("bert+vit", backbones), "--output", str(tmp_path / "run")])
    assert [tower.input_count for tower in load_run(tmp_path / "run").item_encoder.towers] == [4, 1]


@pytest.mark.parametrize(
    "more,method,expected",
    [
        (
            ["--text_attributes", "title", "maker"],
            "full",
            "no column 'maker'; its columns are item_id, brand, title, body",
        ),
        (
            ["--text_attributes", "title", "body"],
            "full",
            "none of its 150 items has a body, which the text encoder would",
        ),
        (
            ["--text_attributes", "title", "TITLE"],
            "full",
            "--text_attributes title title: give the name of at least one",
        ),
        (
            ["--attribute_tokens", "6"],
            "full",
            "--attribute_tokens 6: give as many numbers as there are columns in --text_",
        ),
        (["--attribute_tokens", "6", "2"], "full", "--attribute_tokens 2: must be at least 3"),
        (
            ["--attribute_tokens", "6", "99"],
            "full",
            "--attribute_tokens: 99 tokens per text, prompts included, and the text",
        ),
        (
            ["--text_attributes", "{title}", "brand"],
            "full",
            "'{title}' is a template, not a column; give it by --text_",
        ),
        (
            ["--text_template", "{title}"],
            "full",
            "--text_template '{title}' and --text_attributes or --attribute_tokens",
        ),
        ([], "iisan", "--method iisan: several --text_attributes have no hidden states to read"),
        (["--cached", "yes"], "frozen", "--cached yes: several --text_attributes have no hidden states, so there is"),
        (["--cached", "yes"], "iisan", "--cached yes: several --text_attributes have no hidden states; join them by"),
    ],
)
def test_attributes_that_cannot_be_read(flags, domain, tmp_path, more, method, expected):
    rows = ["item_id\tbrand\ttitle\tbody", *map("\t".join, columns(domain))]
    given = [*flags, *attribute_flags(domain, tmp_path / "set"), *more, "--output", str(tmp_path / "run")]
    (tmp_path / "set/items.tsv").write_text("\n".join(rows))
    with pytest.raises(TransrecError) as caught:
        run(given, method)
    assert expected in str(caught.value)
    assert not (tmp_path / "run/metrics.jsonl").exists()
