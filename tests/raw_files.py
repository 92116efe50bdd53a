"""Files in the layout of each published dataset format, made from interactions that a test chooses."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np

START, DAY = 1_500_000_000 // 86_400, 86_400
ITEMS = range(10, 20)
# User 0 to 9, item of ITEMS, rating 1 to 5, time in days.
Event = tuple[int, int, int, int]


@dataclass(frozen=True)
class Kind:
    """A format: its files for given interactions, and how it names users and items.

    `file` has one `line` per interaction below `header`; `items` makes the other files, by name, which describe ITEMS.
    """

    file: str
    line: Callable[[Event], str]
    header: str = ""
    items: Callable[[], dict[str, str | bytes]] = dict
    user: str = "{}"
    item: str = "{}"

    def write(self, folder: Path, events: list[Event], end: str = "\n") -> Path:
        """Write all files of the format into a folder."""
        lines = [*filter(None, [self.header]), *map(self.line, events)]
        texts = {self.file: "".join(line + end for line in lines), **self.items()}
        for name, content in texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    def expected(self, events: list[Event]) -> dict[str, list[str]]:
        """Return sequences by time, and at equal times by item id; repeated interactions count at their earliest."""
        first: dict[tuple[int, int], int] = {}
        for user, item, _, day in events:
            first[user, item] = min(day, first.get((user, item), day))
        rows = sorted((self.user.format(user), day, self.item.format(item)) for (user, item), day in first.items())
        return {user: [item for *_, item in group] for user, group in groupby(rows, key=lambda row: row[0])}


def seconds(day: int) -> int:
    return (START + day) * DAY


def formatted_time(day: int, form: str) -> str:
    return datetime.fromtimestamp(seconds(day), UTC).strftime(form)


def titles(line: str, head: str = "") -> str:
    """Return a line for each of ITEMS, with {0} replaced by its number."""
    return head + "".join(line.format(item) + "\n" for item in ITEMS)


def npy(rows: int, width: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(rows * width, dtype=np.float32).reshape(rows, width))
    return file.getvalue()


def objects(**keys: str) -> Callable[[Event], str]:
    """Return a function that writes an interaction as a line of JSON with these keys.

    The values are "user", "item", "rating", the time in "s" or "ms", or a template of these.
    """

    def line(event: Event) -> str:
        user, item, rating, day = event
        values = {"user": user, "item": item, "rating": float(rating), "s": seconds(day), "ms": seconds(day) * 1000}
        return json.dumps({key: form.format(**values) if "{" in form else values[form] for key, form in keys.items()})

    return line


KINDS = {
    "adressa": Kind(
        "one_week/20170101",
        objects(eventId="user", userId="cx:{user}", id="a{item}", title="På tur {item}", time="s"),
        user="cx:{}",
        item="a{}",
    ),
    "amazon2014": Kind(
        "reviews_Cat_5.json",
        objects(reviewerID="A{user:013}", asin="B0000000{item}", overall="rating", unixReviewTime="s"),
        items=lambda: {"meta_Cat.json": titles("{{'asin': 'B0000000{0}', 'title': \"It's {0}\"}}")},
        user="A{:013}",
        item="B0000000{}",
    ),
    "amazon2018": Kind(
        "Cat_5.json",
        objects(reviewerID="A{user:013}", asin="B0000000{item}", overall="rating", unixReviewTime="s"),
        items=lambda: {"meta_Cat.json": titles('{{"asin": "B0000000{0}", "title": "Thing {0}"}}')},
        user="A{:013}",
        item="B0000000{}",
    ),
    "amazon2023": Kind(
        "Cat.jsonl",
        objects(user_id="A{user}", parent_asin="B{item}", asin="C{item}", rating="rating", timestamp="ms"),
        items=lambda: {"meta_Cat.jsonl": titles('{{"parent_asin": "B{0}", "title": "Thing {0}"}}')},
        user="A{}",
        item="B{}",
    ),
    "hm": Kind(
        "transactions_train.csv",
        lambda event: f"{formatted_time(event[3], '%Y-%m-%d')},{event[0]},01234567{event[1]},0.05,2",
        "t_dat,customer_id,article_id,price,sales_channel_id",
        lambda: {"articles.csv": titles('01234567{0},"Top, {0}",x', "article_id,prod_name,detail_desc\n")},
        item="01234567{}",
    ),
    "microlens": Kind(
        "MicroLens-50k_pairs.csv",
        lambda event: f"{event[0]},{event[1]},{seconds(event[3])}000",
        "user,item,timestamp",
        lambda: {"MicroLens-50k_titles.csv": titles('{0},"Clip, {0}"', "item,title\n")},
    ),
    "mind": Kind(
        "behaviors.tsv",
        lambda event: f"1\tU{event[0]}\t{formatted_time(event[3], '%m/%d/%Y %I:%M:%S %p')}\t\tN{event[1]}-1 N10-0",
        items=lambda: {"news.tsv": titles("N{0}\tnews\tworld\tTitle {0}\tAbstract\thttps://\t[]\t[]")},
        user="U{}",
        item="N{}",
    ),
    "mmrec": Kind(
        "baby.inter",
        lambda event: f"{event[0]}\t{event[1]}\t{event[2]}\t{seconds(event[3])}\t0",
        "userID\titemID\trating\ttimestamp\tx_label",
        lambda: {"image_feat.npy": npy(20, 4), "text_feat.npy": npy(20, 2)},
    ),
    "movielens": Kind(
        "u.data",
        lambda event: f"{event[0]}\t{event[1]}\t{event[2]}\t{seconds(event[3])}",
        items=lambda: {
            "u.item": titles("{0}|Café {0} (1995)|01-Jan-1995||http://|" + "|".join("0" * 19)).encode("latin-1")
        },
    ),
    "ninerec": Kind(
        "KU_pair.csv",
        lambda event: f"v{event[1]},u{event[0]},{seconds(event[3])}",
        items=lambda: {"KU_item.csv": titles('v{0},"猫,{0}","Cats, {0}"')},
        user="u{}",
        item="v{}",
    ),
    "pixelrec": Kind(
        "Pixel200K.csv",
        lambda event: f"i{event[1]},{event[0]},{seconds(event[3])}",
        "item_id,user_id,timestamp",
        lambda: {"item_info.csv": titles('i{0},"猫, {0}",pets', "item_id,title,tag\n")},
        item="i{}",
    ),
    "recbole": Kind(
        "set.inter",
        lambda event: f"{event[0]}\t0{event[1]}\t{event[2]}\t{seconds(event[3])}.0",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        lambda: {"set.item": titles("0{0}\tFilm {0}", "item_id:token\tmovie_title:token_seq\n")},
        item="0{}",
    ),
    "table": Kind(
        "ratings.csv",
        lambda event: (
            f'{event[0]},{event[1]},{event[2]},{formatted_time(event[3], "%Y-%m-%dT%H:%M:%SZ")},"Thing, {event[1]}"'
        ),
        "user_id,item_id,rating,time,title",
    ),
}
