"""The rank of each target, saved in the run's folder. Metrics, slices and tests between runs are computed from it."""

from pathlib import Path

import numpy as np

from transrec.data.interactions import Split
from transrec.errors import TransrecError, about_file
from transrec.paths import atomic_write, resolve
from transrec.untrusted import map_npy

# One record per target: the user's row in the behaviours file and the item's row in the catalogue, both counted from 0;
# the target's rank among all items, infinity if it was masked; and its score minus the highest score of the others
# (`Ranking.margins`), NaN if unknown. The file can be read without transrec: numpy.load(file)["rank"].
RANK = np.dtype([("user", "<i4"), ("item", "<i4"), ("rank", "<f4"), ("margin", "<f4")])
# The records of earlier releases.
WITHOUT_MARGIN = np.dtype(RANK.descr[:3])


def target_ranks(split: Split, part: str, ranks: np.ndarray, margins: np.ndarray | None = None) -> np.ndarray:
    """Return the RANK records [T] of the targets of a part, "validation" or "test".

    Args:
        ranks, margins: float [T], in the order of `Split.targets`.
    """
    users, places = split.targets(part)
    records = np.empty(len(users), RANK)
    records["user"] = split.user_rows[users]
    records["item"] = split.item_rows[split.kept.values[places] - 1]
    records["rank"], records["margin"] = ranks, np.nan if margins is None else margins
    return records


def ranks_file(folder: Path, part: str, baseline: str = "") -> Path:
    """Return the path of the ranks of a part in a run's folder, of the run itself or of a baseline."""
    return folder / f"{'-'.join(filter(None, ('ranks', part, baseline)))}.npy"


def write_ranks(folder: Path, part: str, records: np.ndarray, baseline: str = "") -> None:
    """Write the result of `target_ranks` into a run's folder. Raises FileError."""
    path = ranks_file(folder, part, baseline)
    with about_file(path), atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, records, allow_pickle=False)


def read_ranks(folder: str | Path, part: str, baseline: str = "") -> np.ndarray:
    """Return the saved ranks of a run, or of a baseline in its folder: RANK [T].

    Raises TransrecError if the run has none, for instance because it is of an earlier release, or the file is damaged.
    """
    path = ranks_file(resolve(folder), part, baseline)
    if not path.exists():
        remedy = f"--resume {folder} continues it, or tests a finished run again"
        if part == "validation":
            remedy = "it is written as a run trains, after each epoch that is the best so far; train the run again"
        raise TransrecError(
            f"{folder}: keeps no {path.name}: the run has not got that far, or an earlier release wrote it; {remedy}"
        )
    with about_file(path, what="cannot be read"):
        records = map_npy(path)
    if records.dtype not in (RANK, WITHOUT_MARGIN) or records.ndim != 1:
        raise TransrecError(
            f"{path}: holds {records.dtype} {list(records.shape)}, not ranks; --resume {folder} writes them again"
        )
    if not (records["rank"] >= 1).all() or min(records["user"].min(initial=0), records["item"].min(initial=0)) < 0:
        raise TransrecError(f"{path}: damaged, ranks begin at 1 and rows at 0; --resume {folder} writes them again")
    return records if records.dtype == RANK else _with_margin(records)


def _with_margin(old: np.ndarray) -> np.ndarray:
    records = np.empty(len(old), RANK)
    for name in ("user", "item", "rank"):
        records[name] = old[name]
    records["margin"] = np.nan
    return records
