"""`recbole`: RecBole's atomic files (https://recbole.io/docs/user_guide/data/atomic_files.html)."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from transrec.data.formats import movielens
from transrec.data.formats.base import PARTS, Format, Rows, first_line, fits, register
from transrec.data.tables import column, missing_column_hint
from transrec.data.tsv import COLUMN_TYPES, ITEM_NAME, plain, untyped
from transrec.errors import TransrecError

IMAGES = ("image", "imageurl", "imurl", "cover", "coverurl", "poster")


@register("recbole")
class RecBole(Format):
    """NAME.inter, or NAME.train.inter, NAME.valid.inter and NAME.test.inter, and NAME.item if items have texts."""

    reads = "NAME.inter, or NAME.train.inter, NAME.valid.inter, NAME.test.inter, and NAME.item of RecBole"

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            first = first_line(path) if fits(path, "*.inter") else ""
            if all(name.endswith(COLUMN_TYPES) for name in first.split("\t")):
                return f"the header of {path.name} gives types to its columns, as {first.split(chr(9))[0]}"
        return ""

    @cached_property
    def parts(self) -> dict[Path, str]:
        """The files of the publisher's own split, and the part that each holds: "train", "validation" or "test".

        In this order, since without times the order of the rows is that of each user's sequence.
        """
        parts = {path: PARTS.get(_stem(path).rpartition(".")[2].lower(), "") for path in self.all_of("*.inter")}
        return {path: part for part in PARTS.values() for path in parts if parts[path] == part}

    def interactions(self) -> list[Rows]:
        names = {_stem(path).rpartition(".")[0] for path in self.parts}
        if len(names) > 1:
            raise TransrecError(
                f"{self.paths[0]}: holds several datasets, {', '.join(sorted(names))}; give the paths of one's files"
            )
        return [self._rows(path) for path in (self.parts or [self.one_of("*.inter")])]

    def _rows(self, path: Path) -> Rows:
        table = self.table(path, delimiter="\t", quote="")
        names = table.columns()
        if lists := [name for name in names if plain(name).endswith("list") and name.endswith("_seq")]:
            raise TransrecError(
                f"{path}: holds a user's earlier items in each line ({lists[0]}), not one interaction a line; import "
                f"the .inter file that these were made of"
            )
        roles = {"user": _matching_column(names, "userid") or names[0]}
        tokens = [name for name in names if name.endswith(":token") and name != roles["user"]]
        roles["item"] = _matching_column(names, "itemid") or next(
            (name for name in tokens if ITEM_NAME.fullmatch(plain(name))), (tokens or [""])[0]
        )
        if not roles["item"]:
            raise TransrecError(f"{path}: has no column of items; {missing_column_hint('item_id:token', names)}")
        roles |= {"time": _matching_column(names, "timestamp", "time"), "rating": _matching_column(names, "rating")}
        roles = {role: name for role, name in roles.items() if name}
        part = self.parts.get(path)
        columns = {role: column(name) for role, name in roles.items()} | ({"part": f"'{part}'"} if part else {})
        return Rows(table, columns, tuple(roles.values()), time_unit="s" if "time" in roles else "")

    def items(self) -> list[Rows]:
        return [self._items(path) for path in self.all_of("*.item") if self._is_of_interactions(path)]

    def _is_of_interactions(self, path: Path) -> bool:
        return any(_stem(inter).startswith(_stem(path)) for inter in self.all_of("*.inter"))

    def _items(self, path: Path) -> Rows:
        table = self.table(path, delimiter="\t", quote="")
        names = table.columns()
        item = _matching_column(names, "itemid") or names[0]
        texts = [name for name in names if name != item]
        title = next((name for end in ("title", "name") for name in texts if plain(name).endswith(end)), "")
        image = _matching_column(texts, *IMAGES)
        roles = {"item": item, "title": title, "image": image}
        roles = {role: name for role, name in roles.items() if name}
        others = {untyped(name).strip().lower(): name for name in texts if name not in roles.values()}
        roles = {name: other for name, other in others.items() if name and name not in roles} | roles
        return Rows(table, {role: column(name) for role, name in roles.items()}, tuple(roles.values()))

    def published(self) -> dict[str, int]:
        names = {_stem(path) for path in self.all_of("*.inter")}
        size = next((size for size in movielens.COUNTS if f"ml-{size}" in names), "")
        counts = movielens.COUNTS.get(size, {})
        return {what: count for what, count in counts.items() if what in ("users", "items", "interactions")}

    def notes(self) -> list[str]:
        full = [path for path in self.all_of("*.inter") if path not in self.parts]
        if self.parts and full:
            return [f"{full[0].name} is not read, since the files of a split lie beside it; give its path to read it"]
        return []


def _stem(path: Path) -> str:
    """Return the file name up to .inter or .item."""
    return path.name[: path.name.lower().rindex(".inter" if fits(path, "*.inter") else ".item")]


def _matching_column(names: Sequence[str], *wanted: str) -> str:
    """Return the column whose name, as `plain` writes it, comes first in `wanted`; "" if there is none."""
    return next((name for want in wanted for name in names if plain(name) == want), "")
