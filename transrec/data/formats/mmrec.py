"""`mmrec`: datasets of MMRec (https://github.com/enoche/MMRec), with their item features."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transrec.data.formats.base import Format, Rows, first_line, fits, register
from transrec.data.tables import column
from transrec.data.vectors import IDS
from transrec.errors import TransrecError, about_file
from transrec.options import Options, flag
from transrec.untrusted import map_npy

REQUIRED_COLUMNS = ("userID", "itemID", "x_label")
FEATURES = {"image": "image_feat.npy", "text": "text_feat.npy"}
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class MMRecOptions(Options):
    features: Literal["all", "image", "text", "none"] = flag(
        "all", "Item features to keep in features.npy; all: image and text features, concatenated."
    )


@register("mmrec")
class MMRec(Format):
    """NAME.inter with its split, and image_feat.npy and text_feat.npy, whose row numbers are the item ids."""

    Options = MMRecOptions
    reads = "NAME.inter, image_feat.npy, text_feat.npy, i_id_mapping.csv and meta-NAME.csv of MMRec"

    def __init__(self, paths: Sequence[Path], features: str = "all", **flags: Any):
        super().__init__(paths, **flags)
        self.features = features
        self._vectors: dict[Path, np.ndarray] = {}

    @classmethod
    def recognise(cls, files: Sequence[Path]) -> str:
        for path in files:
            names = first_line(path) if fits(path, "*.inter") else ""
            if set(REQUIRED_COLUMNS) <= set(names.split("\t")):
                return f"the columns {', '.join(REQUIRED_COLUMNS)} of {path.name}"
        return ""

    def interactions(self) -> list[Rows]:
        table = self.table(self.one_of("*.inter"), delimiter="\t", quote="")
        names = table.columns()
        roles = {"user": "userID", "item": "itemID", "time": "timestamp", "rating": "rating"}
        roles = {role: name for role, name in roles.items() if name in names or name in REQUIRED_COLUMNS}
        # Open the features first, so that damaged files are reported before any interactions are read.
        self._vectors = self._open_features()
        part = "CASE x_label WHEN '0' THEN 'train' WHEN '1' THEN 'validation' WHEN '2' THEN 'test' END"
        columns = {role: column(name) for role, name in roles.items()} | {"part": part}
        return [Rows(table, columns, (*roles.values(), "x_label"))]

    def items(self) -> list[Rows]:
        rows = []
        for path in self.all_of("i_id_mapping.csv"):
            table = self.table(path, delimiter="\t")
            ids = [name for name in table.columns() if name != "itemID"][:1]
            rows.append(Rows(table, {"item": column("itemID"), "original_id": column(ids[0])}, ("itemID", *ids)))
        for path in self.all_of("meta-*.csv"):
            table = self.table(path)
            names = [name for name in ("title", "brand", "description") if name in table.columns()]
            columns = {"item": column("itemID")} | {name: column(name) for name in names}
            rows.append(Rows(table, columns, ("itemID", *names)))
        return rows

    def _open_features(self) -> dict[Path, np.ndarray]:
        """Open the feature files that are present and wanted, by path, each [items, D]."""
        wanted = {"all": [*FEATURES.values()], "none": []}.get(self.features, [FEATURES.get(self.features)])
        maps = {}
        for name in wanted:
            for path in self.all_of(name) if self.features == "all" else [self.one_of(name)]:
                with about_file(path, what="cannot be read"):
                    maps[path] = map_npy(path)
                if maps[path].ndim != 2 or maps[path].dtype.kind != "f":
                    raise TransrecError(
                        f"{path}: is {maps[path].dtype} {list(maps[path].shape)}; features must be floats [items, D]"
                    )
        return maps

    def finish(self, folder: Path) -> None:
        """Write features.npy, float32 [items, D], and ids.txt, with a row for each item of items.tsv."""
        if not self._vectors:
            return
        with open(folder / "items.tsv", encoding="utf-8") as file:
            next(file)
            ids = [line.rstrip("\n").partition("\t")[0] for line in file]
        numbers = np.array([int(item) if item.isdecimal() else -1 for item in ids])
        for path, vectors in self._vectors.items():
            if len(lacking := np.flatnonzero((numbers < 0) | (numbers >= len(vectors)))):
                raise TransrecError(
                    f"{path}: has {len(vectors):,} rows, and none for item {ids[lacking[0]]!r}; fetch it again, or "
                    f"give --features none"
                )
        width = sum(vectors.shape[1] for vectors in self._vectors.values())
        features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (len(ids), width))
        for start in range(0, len(ids), ROWS_AT_ONCE):
            rows = numbers[start : start + ROWS_AT_ONCE]
            features[start : start + len(rows)] = np.hstack([vectors[rows] for vectors in self._vectors.values()])
        features.flush()
        (folder / IDS).write_text("".join(f"{item}\n" for item in ids), encoding="utf-8")

    def notes(self) -> list[str]:
        parts = ", then ".join(f"{vectors.shape[1]:,} of {path.name}" for path, vectors in self._vectors.items())
        return [f"features.npy, read by --modalities vector, has {parts}"] if parts else []
