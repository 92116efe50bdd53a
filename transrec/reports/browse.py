"""The pages of scripts/browse.py: what one to three finished runs recommend to users, for typed histories and items."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from html import escape
from urllib.parse import parse_qs, urlencode

import numpy as np

from transrec.data.images.gallery import open_gallery
from transrec.data.moments import moment
from transrec.errors import TransrecError
from transrec.finished import FinishedRun, Recommendations
from transrec.reports.page import CARDS, as_card, as_text, shell, thumbnail
from transrec.training.ranks import read_ranks, target_ranks

MOST_RUNS = 3
STEPS_SHOWN = 15
USERS_LISTED = 60
ITEMS_LISTED = 24

STYLE = (
    CARDS
    + """nav, form { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; margin: 0.8rem 0; align-items: center; }
a { color: var(--mark); } label { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; flex: 1 1 18rem; }
input { font: inherit; padding: 0.3rem 0.5rem; flex: 1 1 10rem; min-width: 0; }
button { font: inherit; padding: 0.3rem 0.9rem; }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
.run { min-width: 0; } .run h3 { margin-top: 0.5rem; }
.top { margin: 0; padding: 0; list-style: none; }
.top li { display: flex; gap: 0.6rem; padding: 0.3rem; border-bottom: 1px solid var(--line);
  font-size: 0.9rem; line-height: 1.3; }
.top li > :last-child { min-width: 0; overflow-wrap: anywhere; }
.top img { width: 48px; height: 48px; object-fit: cover; border-radius: 0.2rem; }
.top .rank { min-width: 1.5rem; text-align: right; font-variant-numeric: tabular-nums; }
.top li.hit { outline: 2px solid var(--mark); border-radius: 0.3rem; }
.users { display: flex; flex-wrap: wrap; gap: 0.3rem 1rem; list-style: none; padding: 0; }
"""
)


class Browser:
    """Pages about one to three finished runs over the same dataset and split.

    Args:
        runs: the runs to show side by side.
        k: number of recommendations or neighbours per run.
        images: store, folder or zip of pictures; None: the one that a run reads, else the store in the dataset folder.

    Raises TransrecError for more than three runs, for runs that differ in their dataset, split or items, and for k
    below 1 or above the number of items.
    """

    def __init__(self, runs: Sequence[FinishedRun], k: int = 10, images: str | None = None) -> None:
        if len(runs) > MOST_RUNS:
            raise TransrecError(f"--run: is given {len(runs)} times; {MOST_RUNS} runs at most stand side by side")
        self.runs, self.k, self.first = runs, k, runs[0]
        for other in runs[1:]:
            check_alike(self.first, other)
        if not 1 <= k <= len(self.first.ids):
            raise TransrecError(
                f"--k {k}: must be at least 1 and at most {len(self.first.ids):,}, the items that are ranked"
            )
        dataset = self.first.dataset
        self.split, self.users = dataset.split, [dataset.interactions.users[row] for row in dataset.split.user_rows]
        self.number = {user: number for number, user in enumerate(self.users)}
        read = (run.settings.as_dict().get("images") for run in runs)
        self.gallery = open_gallery(dataset.folder, images or next(filter(None, read), None), self.first.ids)

    @cached_property
    def _owners(self) -> np.ndarray:
        return self.split.targets("test")[0]

    @cached_property
    def _titles(self) -> list[str]:
        return [title.casefold() for title in self.first.titles]

    @cached_property
    def _ranks(self) -> list[np.ndarray | None]:
        return [_stored_ranks(run) for run in self.runs]

    def answer(self, address: str) -> tuple[int, str]:
        """Return the HTTP status and the page for an address such as "/user?id=u17". The page explains any mistake."""
        path, _, query_string = address.partition("?")
        query = {name: values[0] for name, values in parse_qs(query_string, errors="surrogateescape").items()}
        pages = {"/": self._user_list, "/user": self._user, "/history": self._history, "/item": self._item}
        if path not in pages:
            return 404, self._page([f"<p>{as_text(path)}: there is no such page.</p>"])
        try:
            return 200, self._page(pages[path](query))
        except TransrecError as error:
            return 400, self._page([f'<p role="alert">{as_text(error)}</p>'])

    def find_items(self, words: str) -> list[int]:
        """Return places in `ids`: the item whose id is `words` first, then items whose titles have all the words."""
        exact, wanted = self.first.index.get(words.strip()), words.casefold().split()
        places = [place for place, title in enumerate(self._titles) if wanted and all(word in title for word in wanted)]
        return places if exact is None else [exact, *(place for place in places if place != exact)]

    def find_users(self, text: str) -> list[str]:
        """Return users whose id contains a text, in the order of the users file, but an exact match first."""
        exact, wanted = [text] * (text in self.number), text.casefold()
        return exact + [user for user in self.users if wanted in user.casefold() and user != text]

    def _page(self, sections: Iterable[str]) -> str:
        links = (("/", "Users"), ("/history", "Type a history"), ("/item", "Items"))
        nav = " ".join(f'<a href="{path}">{name}</a>' for path, name in links)
        return shell(self.first.dataset.name, [f"<nav>{nav}</nav>", *sections], STYLE)

    def _user_list(self, query: dict[str, str]) -> list[str]:
        text = query.get("find", "").strip()
        users = self.find_users(text)
        shown = "".join(f"<li>{_link('/user', as_text(user), id=user)}</li>" for user in users[:USERS_LISTED])
        return [
            "<h2>Users</h2>",
            _form("/", "User id, or a part of it", "find", text, "Find"),
            _count_line(len(users), USERS_LISTED, "users"),
            f'<ul class="users">{shown}</ul>',
        ]

    def _user(self, query: dict[str, str]) -> list[str]:
        user = query.get("id", "")
        if user not in self.number:
            raise TransrecError(f"user {user!r}: the runs kept no such user; look for one under Users")
        number = self.number[user]
        first, stop = np.searchsorted(self._owners, [number, number + 1])
        head = f"<h2>User {as_text(user)}</h2>"
        if first == stop:
            items = [self.first.ids[place - 1] for place in self.split.kept[number]]
            return [head, "<p>No test target: recommended from all that is kept.</p>", *self._recommended(items)]
        chosen = query.get("target", str(stop - first))
        if not (chosen.isdecimal() and len(chosen) < 10 and 1 <= int(chosen) <= stop - first):
            raise TransrecError(f"target {chosen!r}: user {user!r} has the targets 1 to {stop - first}")
        target = int(first) + int(chosen) - 1
        others = [
            str(other) if other == int(chosen) else _link("/user", str(other), id=user, target=str(other))
            for other in range(1, stop - first + 1)
        ]
        more = f"<nav>Test targets: {' '.join(others)}</nav>" if len(others) > 1 else ""
        return [head, more, *self._target(target)]

    def _target(self, target: int) -> list[str]:
        """Return the history, the target, and the items that each run recommends under its own test mask."""
        place = int(self.split.targets("test")[1][target])
        kept, start = self.split.kept.values, int(self.split.kept.starts[self._owners[target]])
        begin = max(start, place - STEPS_SHOWN)
        steps = [self._step(kept[at] - 1, str(at - start + 1), at) for at in range(begin, place)]
        wanted = self.first.ids[kept[place] - 1]
        end = self._step(kept[place] - 1, "target", place, marked=True)
        lists = []
        for run, ranks in zip(self.runs, self._ranks, strict=True):
            ((scores, items),) = run.top_for_targets("test", self.k, targets=np.array([target]))
            top = run.to_recommendations(scores[0], items[0])
            lists.append(self._column(run, top, wanted, "" if ranks is None else _rank(ranks["rank"][target])))
        note = _count_line(place - start, STEPS_SHOWN, "interactions before the target", "the last ")
        return [note, f'<ol class="cards">{"".join(steps)}{end}</ol>', _side_by_side(f"Top {self.k}", lists)]

    def _history(self, query: dict[str, str]) -> list[str]:
        text, words = query.get("items", ""), query.get("find", "")
        sections = [
            "<h2>A history</h2>",
            _form("/history", "Item ids, oldest first, with spaces between", "items", text, "Recommend"),
            _form("/history", "Add an item by its title or id", "find", words, "Find", items=text),
        ]
        if words:
            sections += self._search_results(words, lambda item: _link("/history", "add", items=f"{text} {item}"))
        return sections + (self._recommended(text.split()) if text.strip() else [])

    def _recommended(self, items: list[str]) -> list[str]:
        """Return a history of item ids and the items that each run recommends for it, without the history's items."""
        places = self.first.positions(items)
        begin = max(0, len(items) - STEPS_SHOWN)
        steps = "".join(self._step(place, str(at)) for at, place in enumerate(places[begin:], start=begin + 1))
        lists = [self._column(run, run.recommend(items, self.k)) for run in self.runs]
        note = _count_line(len(items), STEPS_SHOWN, "items in the history", "the last ")
        return [note, f'<ol class="cards">{steps}</ol>', _side_by_side(f"Top {self.k}", lists)]

    def _item(self, query: dict[str, str]) -> list[str]:
        words, item = query.get("find", ""), query.get("id", "")
        sections = ["<h2>Items</h2>", _form("/item", "Words of a title, or an id", "find", words, "Find")]
        if words:
            return sections + self._search_results(words, lambda item: "")
        if not item:
            return sections
        (place,) = self.first.positions([item])
        lists = [self._column(run, run.neighbours(item, self.k)) for run in self.runs]
        use = _link("/history", "Recommend from this item", items=item)
        card = f'<ol class="cards">{self._step(place, item)}</ol><p>{use}</p>'
        return [*sections, card, _side_by_side("Nearest items, by the cosine of embeddings", lists)]

    def _search_results(self, words: str, more: Callable[[str], str]) -> list[str]:
        """Return the items that match the words; `more` maps an item's id to HTML that follows the item."""
        places = self.find_items(words)
        cards = "".join(
            self._step(place, item := self.first.ids[place], more=more(item)) for place in places[:ITEMS_LISTED]
        )
        return [_count_line(len(places), ITEMS_LISTED, "items"), f'<ul class="cards">{cards}</ul>']

    def _step(self, place: int, label: str, at: int | None = None, marked: bool = False, more: str = "") -> str:
        """Return the card of the item at a place in `ids`; `at` is its index in `kept`, and `more` is HTML."""
        item = self.first.ids[place]
        when = "" if at is None or self.split.times is None else f" {moment(int(self.split.times[at]))}"
        what = self._named(item, self.first.titles[place]) + (f"<br>{more}" if more else "")
        return as_card(thumbnail(self.gallery, item), f"{label}{when}", what, marked)

    def _named(self, item: str, title: str) -> str:
        return _link("/item", as_text(title) if title.strip() else f"item {as_text(item)}", id=item)

    def _column(
        self, run: FinishedRun, recommendations: Recommendations, target: str | None = None, rank: str = ""
    ) -> str:
        """Return a run's list of items, with the target marked as a hit."""
        rows = []
        for number, (item, score, title) in enumerate(
            zip(recommendations.ids, recommendations.scores, recommendations.titles, strict=True), start=1
        ):
            hit = item == target
            details = f"{as_text(item)} · {score:.4f}" + " · <strong>hit</strong>" * hit
            rows.append(
                f"<li{' class=hit' * hit}><span class=rank>{number}</span>{thumbnail(self.gallery, item)}"
                f"<span>{self._named(item, title)}<br><span class=faint>{details}</span></span></li>"
            )
        alike = sum(other.folder.name == run.folder.name for other in self.runs) > 1
        name = str(run.folder) if alike else run.folder.name
        rank = f"<p class=faint>{rank}</p>" if rank else ""
        return (
            f'<section class="run"><h3>{as_text(name)}</h3><p class=faint>{as_text(run.settings.name)}</p>{rank}'
            f'<ol class="top">{"".join(rows)}</ol></section>'
        )


def check_alike(one: FinishedRun, other: FinishedRun) -> None:
    """Raise TransrecError unless two runs rank the same items for the same test targets of the same dataset."""
    data = [run.dataset for run in (one, other)]
    items = [
        [(dataset.catalog.ids[row], dataset.catalog.texts[row]) for row in dataset.split.item_rows] for dataset in data
    ]
    files = [dataset.interactions for dataset in data]
    if (
        files[0].users != files[1].users
        or not np.array_equal(files[0].sequences.stops, files[1].sequences.stops)
        or data[0].catalog.ids != data[1].catalog.ids
        or not np.array_equal(files[0].sequences.values, files[1].sequences.values)
    ):
        differs = "the dataset"
    elif items[0] != items[1]:
        differs = "what is ranked"
    else:
        users = [dataset.split.user_rows for dataset in data]
        alike = np.array_equal(users[0], users[1]) and np.array_equal(_targets(one), _targets(other))
        differs = "" if alike else "the split"
    if differs:
        raise TransrecError(
            f"--run {other.folder}: {differs} is not that of {one.folder}; only runs over the same dataset and split "
            f"stand side by side"
        )


def _targets(run: FinishedRun) -> np.ndarray:
    """Return the row of the user and of the item for each test target."""
    split = run.dataset.split
    return target_ranks(split, "test", np.ones(len(split.test)))[["user", "item"]]


def _stored_ranks(run: FinishedRun) -> np.ndarray | None:
    """Return the ranks that a run stored for the test targets; None if it stored none, or those of other targets."""
    try:
        kept = read_ranks(run.folder, "test")
    except TransrecError:
        return None
    return kept if np.array_equal(kept[["user", "item"]], _targets(run)) else None


def _rank(rank: float) -> str:
    return f"target at rank {rank:,.10g}" if np.isfinite(rank) else "the target was masked"


def _count_line(count: int, listed: int, what: str, which: str = "the first ") -> str:
    return f"<p class=faint>{count:,} {what}{f'; {which}{listed} of them:' if count > listed else ''}</p>"


def _side_by_side(head: str, lists: list[str]) -> str:
    return f'<h2>{head}</h2>\n<div class="runs">{"".join(lists)}</div>'


def _link(path: str, text: str, **query: str) -> str:
    """Return a link; `text` is HTML."""
    address = f"{path}?{urlencode(query, errors='surrogateescape')}"
    return f'<a href="{escape(address)}">{text}</a>'


def _form(path: str, label: str, name: str, value: str, button: str, **hidden: str) -> str:
    """Return a form with one text field, a button, and hidden fields."""
    more = "".join(f'<input type="hidden" name="{key}" value="{escape(text)}">' for key, text in hidden.items())
    field = f'<label>{label} <input name="{name}" value="{escape(value)}" autocomplete="off"></label>'
    return f'<form action="{path}">{field}{more}<button>{button}</button></form>'
