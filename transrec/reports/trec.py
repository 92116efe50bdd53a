"""Finished runs as TREC files: the ranked items of each target (run files) and the relevant item (qrels)."""

from pathlib import Path
from urllib.parse import quote

import numpy as np

from transrec.finished import FinishedRun
from transrec.paths import atomic_write
from transrec.progress import Bar


def queries(run: FinishedRun, part: str) -> list[str]:
    """Return the query id of each "validation" or "test" target: its user's id.

    If any user has several targets, :1, :2, ... is appended to every id.
    """
    split, users = run.dataset.split, run.dataset.interactions.users
    owners = split.targets(part)[0]
    names = [_word(users[row]) for row in split.user_rows[owners].tolist()]
    counts = np.bincount(owners, minlength=split.user_count)
    if counts.max(initial=0) <= 1:
        return names
    firsts = np.cumsum(counts) - counts
    numbers = np.arange(len(names)) - firsts[owners] + 1
    return [f"{name}:{number}" for name, number in zip(names, numbers.tolist(), strict=True)]


def write_qrels(run: FinishedRun, part: str, path: Path) -> None:
    """Write a line `query 0 item 1` for each target. Raises FileError."""
    targets = getattr(run.dataset.split, part).only_last(1).flat().tolist()
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for query, item in zip(queries(run, part), targets, strict=True):
            file.write(f"{query} 0 {_word(run.ids[item - 1])} 1\n")


def write_run(run: FinishedRun, part: str, path: Path, depth: int, mask_history: str | None = None) -> None:
    """Write a line `query Q0 item rank score name` for each top item of each target, best first.

    Args:
        depth: number of items per target; all items, if there are fewer.
        mask_history: as for `FinishedRun.evaluate`.

    Raises FileError.
    """
    names, items, tag = iter(queries(run, part)), [_word(item) for item in run.ids], _word(run.folder.name)
    total = len(getattr(run.dataset.split, part))
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
        Bar(total=total, desc=f"list items, {part}", unit="target", delay=1, leave=False) as bar,
    ):
        for scores, ranked in run.top_for_targets(part, min(depth, len(items)), mask_history):
            for row, places in zip(scores, ranked.tolist(), strict=True):
                query = next(names)
                for rank, (score, place) in enumerate(zip(row, places, strict=True), start=1):
                    if score > -np.inf:
                        file.write(f"{query} Q0 {items[place]} {rank} {score!s} {tag}\n")
            bar.update(len(scores))


def _word(text: str) -> str:
    """Return an id as one word, as the format requires: white space and % are percent-encoded."""
    return "".join(quote(letter) if letter.isspace() or letter == "%" else letter for letter in text)
