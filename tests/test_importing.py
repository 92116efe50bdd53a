"""Importing: from files as publishers give them out to sequences, or to the file, line and remedy of a mistake."""

import gzip
import json
from pathlib import Path

import pytest

from transrec.data.dataset import load_dataset
from transrec.data.importing.command import main
from transrec.errors import TransrecError

pytest.importorskip("duckdb", reason="importing needs duckdb: pip install 'transrec[import]'")


class Importing:
    """Imports files of a folder into a new one, and reads what came of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "out"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    def __call__(self, kind: str, *words: object, of: object = None) -> dict[str, list[str]]:
        main([kind, str(of or self.folder / "raw"), *map(str, words), "--out", str(self.out)])
        return self.sequences

    @property
    def sequences(self) -> dict[str, list[str]]:
        rows = (line.split("\t") for line in (self.out / "users.tsv").read_text().splitlines())
        return {user: items.split() for user, items in rows}

    @property
    def items(self) -> list[list[str]]:
        return [line.split("\t") for line in (self.out / "items.tsv").read_text().split("\n")[:-1]]

    @property
    def card(self) -> dict:
        return json.loads((self.out / "dataset.json").read_text())["import"]

    def fails(self, kind: str, *words: object, of: object = None) -> str:
        """The message; nothing may be left behind."""
        before = sorted(self.folder.iterdir())
        with pytest.raises(TransrecError) as error:
            self(kind, *words, of=of)
        assert sorted(self.folder.iterdir()) == before
        return str(error.value)


@pytest.fixture
def importing(tmp_path) -> Importing:
    return Importing(tmp_path)


MIND_BEHAVIORS = (
    "1\tU1\t11/15/2019 8:55:22 AM\tN1 N2\tN3-1 N4-0\n"
    "2\tU1\t11/14/2019 8:55:22 PM\tN1 N2\tN4-1 N5-0 N3-0\n"
    "3\tU2\t11/11/2019 12:05:00 AM\t\tN1-0 N2-1\n"
)
MIND_NEWS = "".join(f'N{n}\tnews\tworld\tTitle "{n}\tAbstract\thttps://\t[]\t[]\n' for n in range(1, 6))


def test_mind_is_the_history_and_then_the_clicks_by_time(importing):
    importing.write("behaviors.tsv", MIND_BEHAVIORS)
    importing.write("news.tsv", MIND_NEWS)
    assert importing("auto") == {"U1": ["N1", "N2", "N4", "N3"], "U2": ["N2"]}
    assert importing.items[:2] == [
        ["item_id", "title", "abstract", "category", "subcategory"],
        ["N1", 'Title "1', "Abstract", "news", "world"],
    ]


def test_a_run_on_a_raw_folder_names_the_command(importing):
    raw = importing.write("behaviors.tsv", MIND_BEHAVIORS).parent
    importing.write("news.tsv", MIND_NEWS)
    with pytest.raises(TransrecError, match=r"is raw mind .* scripts/import_dataset.py mind \S+/raw --out"):
        load_dataset(raw, 20, 5)
