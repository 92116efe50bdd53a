"""What is read of an item's text: columns of its items file, joined by a template."""

from pathlib import Path
from shutil import copyfile

from conftest import run
from safetensors.torch import load_file


def described(domain: Path, folder: Path, lines: list[str]) -> Path:
    """The dataset with another items file."""
    folder.mkdir()
    copyfile(domain / "users.tsv", folder / "users.tsv")
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")
    return folder


def columns(domain: Path) -> list[tuple[str, str, str]]:
    """Id, brand and what else is in the title of each item; every tenth has no brand."""
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
