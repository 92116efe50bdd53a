"""The rank of each target, kept in a run's folder: metrics, slices and tests between runs are made of it."""

from pathlib import Path

import numpy as np

from transrec.data.interactions import Split
from transrec.errors import TransrecError, about_file
from transrec.paths import atomic_write, resolve
from transrec.untrusted import map_npy

# Of each target its user's row in the behaviours file, the catalogue's row of its item, both from 0, its rank among all
# items, infinity where it was masked, and its score less the highest of the others (`Ranking.margins`), NaN where it is
# not known. It is read without transrec, too: numpy.load(file)["rank"].
RANK = np.dtype([("user", "<i4"), ("item", "<i4"), ("rank", "<f4"), ("margin", "<f4")])
# What earlier releases kept.
WITHOUT_MARGIN = np.dtype(RANK.descr[:3])


def target_ranks(split: Split, part: str, ranks: np.ndarray, margins: np.ndarray | None = None) -> np.ndarray:
    """The RANK of each target of "validation" or "test": [T].

    Args:
        ranks, margins: float [T], in the order of `Split.targets`.
    """
    users, places = split.targets(part)
    kept = np.empty(len(users), RANK)
    kept["user"] = split.user_rows[users]
    kept["item"] = split.item_rows[split.kept.values[places] - 1]
    kept["rank"], kept["margin"] = ranks, np.nan if margins is None else margins
    return kept


def ranks_file(folder: Path, part: str, baseline: str = "") -> Path:
    """Where a run keeps the ranks of a part, its own or those of a baseline."""
    return folder / f"{'-'.join(filter(None, ('ranks', part, baseline)))}.npy"


def write_ranks(folder: Path, part: str, kept: np.ndarray, baseline: str = "") -> None:
    """Write what `target_ranks` gives into a run's folder. Raises FileError."""
    path = ranks_file(folder, part, baseline)
    with about_file(path), atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, kept, allow_pickle=False)


def read_ranks(folder: str | Path, part: str, baseline: str = "") -> np.ndarray:
    """The ranks that a run has kept, its own or those of a baseline: RANK [T].

    Raises TransrecError where there are none, as of runs of earlier releases, and for a damaged file.
    """
    path = ranks_file(resolve(folder), part, baseline)
    if not path.exists():
        raise TransrecError(
            f"{folder}: keeps no {path.name}: the run has not come so far, or is of an earlier release; --resume "
            f"{folder} goes on, or tests a finished run again"
        )
    with about_file(path, what="cannot be read"):
        kept = map_npy(path)
    if kept.dtype not in (RANK, WITHOUT_MARGIN) or kept.ndim != 1:
        raise TransrecError(
            f"{path}: holds {kept.dtype} {list(kept.shape)}, and no ranks; --resume {folder} writes them anew"
        )
    if not (kept["rank"] >= 1).all() or min(kept["user"].min(initial=0), kept["item"].min(initial=0)) < 0:
        raise TransrecError(f"{path}: damaged, ranks begin at 1 and rows at 0; --resume {folder} writes them anew")
    return kept if kept.dtype == RANK else _with_margin(kept)


def _with_margin(kept: np.ndarray) -> np.ndarray:
    found = np.empty(len(kept), RANK)
    for name in ("user", "item", "rank"):
        found[name] = kept[name]
    found["margin"] = np.nan
    return found
