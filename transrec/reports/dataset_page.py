"""A dataset as one self-contained HTML page: counts, curves, doubtful items, example users."""

from dataclasses import dataclass, field

import numpy as np

from transrec.data.dataset import Dataset
from transrec.data.images.gallery import Gallery
from transrec.data.interactions import PARTS
from transrec.data.moments import moment
from transrec.data.statistics import Repeats, cold_items, same_texts
from transrec.reports.dataset_plots import panels, svg
from transrec.reports.page import CARDS, as_card, as_table, as_text, data_card, shell, thumbnail

LISTED = 10
IDS_LISTED = 5
EXAMPLE_USERS = 6
STEPS_SHOWN = 15
PICTURES = 48


@dataclass(frozen=True)
class DatasetCheck:
    """A dataset and the results of checking it.

    Attributes:
        header, rows: the table of the dataset's counts.
        notes: sentences to show below the table.
        repeats: the pairs of a user and an item that interact more than once.
        gallery: the dataset's pictures, if there are any.
        broken: the reason why a picture cannot be decoded, by item.
    """

    dataset: Dataset
    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    repeats: Repeats
    gallery: Gallery | None = None
    broken: dict[str, str] = field(default_factory=dict)


def page(check: DatasetCheck) -> str:
    """Return the page. It shows the dataset only as escaped text and as pictures that were decoded and re-encoded."""
    dataset = check.dataset
    sections = [
        as_table(check.header, check.rows, "numbers"),
        *(f'<p class="faint">{as_text(note)}</p>' for note in check.notes),
        _curves(dataset),
        _broken(check),
        _cold(dataset),
        _duplicates(dataset, check.repeats),
        _longest(dataset),
        _Examples(check).html(),
        f"<h2>Data card</h2>\n{card}" if (card := data_card(dataset.folder)) else "",
    ]
    return shell(dataset.name, sections, CARDS)


def _count_line(what: str, count: int) -> str:
    """Return the line above a table that may show only some of the entries."""
    return f"<p>{what}: {count:,}{f'; {LISTED} of them:' if count > LISTED else ''}</p>"


def _curves(dataset: Dataset) -> str:
    figures = (f'<figure class="plot">{svg(dataset, name)}</figure>' for name in panels(dataset))
    return f'<h2>Curves</h2>\n<div class="plots">{"".join(figures)}</div>'


def _broken(check: DatasetCheck) -> str:
    if not check.broken:
        return ""
    count = _count_line("Pictures that cannot be decoded", len(check.broken))
    rows = list(check.broken.items())[:LISTED]
    return f"<h2>Broken pictures</h2>\n{count}{as_table(['item', 'why'], rows)}"


def _cold(dataset: Dataset) -> str:
    rows = dataset.split.item_rows[cold_items(dataset.split) - 1]
    count = _count_line(f"Of {dataset.split.item_count:,} items in no training sequence", len(rows))
    table = as_table(["item", "text"], (_item(dataset, row) for row in rows[:LISTED])) if len(rows) else ""
    return f"<h2>Cold items</h2>\n{count}{table}"


def _item(dataset: Dataset, row: int) -> tuple[str, str]:
    return dataset.catalog.ids[row], dataset.catalog.texts[row]


def _duplicates(dataset: Dataset, repeats: Repeats) -> str:
    catalog, users = dataset.catalog, dataset.interactions.users
    groups = same_texts(catalog.texts)
    parts = ["<h2>Duplicates</h2>", _count_line("Titles that several items have, capitals aside", len(groups))]
    if groups:
        rows = []
        for group in groups[:LISTED]:
            more = ", ..." if len(group) > IDS_LISTED else ""
            ids = ", ".join(catalog.ids[row] for row in group[:IDS_LISTED]) + more
            rows.append([catalog.texts[group[0]], f"{len(group):,}", ids])
        parts.append(as_table(["title", "items", "ids"], rows))
    repeating = repeats.interactions
    parts.append(
        f"<p>{repeating:,} interactions repeat an earlier one of their user{'; most often:' * (repeating > 0)}</p>"
    )
    if repeating:
        rows = [[users[user], *_item(dataset, row), f"{count:,}"] for user, row, count in repeats.most(LISTED)]
        parts.append(as_table(["user", "item", "title", "times"], rows))
    return "\n".join(parts)


def _longest(dataset: Dataset) -> str:
    texts = dataset.catalog.texts
    rows = sorted(range(len(texts)), key=lambda row: -len(texts[row]))[:LISTED]
    shown = [[*_item(dataset, row), f"{len(texts[row]):,}"] for row in rows if texts[row].strip()]
    return f"<h2>Longest titles</h2>\n{as_table(['item', 'title', 'letters'], shown)}" if shown else ""


class _Examples:
    """A few users, spread evenly over the kept ones, each with the end of their sequence and their targets."""

    def __init__(self, check: DatasetCheck):
        self.dataset, self.gallery, self.broken = check.dataset, check.gallery, check.broken
        self.pictures_left = PICTURES

    def html(self) -> str:
        count = self.dataset.split.user_count
        users = np.unique(np.linspace(0, count - 1, min(count, EXAMPLE_USERS)).astype(int))
        return "\n".join(["<h2>Example users</h2>", *(self._user(int(user)) for user in users)])

    def _user(self, user: int) -> str:
        split, interactions = self.dataset.split, self.dataset.interactions
        start, stop = int(split.kept.starts[user]), int(split.kept.stops[user])
        first = max(start, stop - STEPS_SHOWN)
        name = interactions.users[split.user_rows[user]]
        left_out = f", the last {STEPS_SHOWN} of" if first > start else ","
        heading = f"<h3>User {as_text(name)}{left_out} {stop - start:,} interactions that are kept</h3>"
        steps = "\n".join(self._step(user, place) for place in range(first, stop))
        return f'{heading}\n<ol class="cards">\n{steps}\n</ol>'

    def _step(self, user: int, place: int) -> str:
        split = self.dataset.split
        part = int(place >= split.validation_starts[user]) + int(place >= split.test_starts[user])
        item, title = _item(self.dataset, int(split.item_rows[split.kept.values[place] - 1]))
        when = "" if split.times is None else f" {moment(int(split.times[place]))}"
        label = f"{PARTS[part]}{when}" if part else f"{place - int(split.kept.starts[user]) + 1}{when}"
        what = as_text(title) if title.strip() else f"item {as_text(item)}"
        return as_card(self._picture(item), label, what, marked=part > 0)

    def _picture(self, item: str) -> str:
        if not self.pictures_left or item in self.broken:
            return ""
        picture = thumbnail(self.gallery, item)
        self.pictures_left -= bool(picture)
        return picture
