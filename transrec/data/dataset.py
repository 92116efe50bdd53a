"""Finds and reads the files of a dataset, which is a folder."""

import os
import shlex
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transrec.data import interaction_rows
from transrec.data.catalog import Catalog, read_catalog
from transrec.data.interactions import (
    PARTS,
    Interactions,
    Sequences,
    Split,
    evaluate_on,
    read_interactions,
    train_on_fraction,
)
from transrec.data.parquet import is_parquet
from transrec.data.splits import LEAVE_ONE_OUT, Splitting
from transrec.errors import TransrecError, about_file
from transrec.paths import file_sha256, resolve
from transrec.untrusted import read_json

if TYPE_CHECKING:
    from transrec.data.images.store import ImageStore

NAMES_SHOWN = 10
# For each role, the patterns to try first and the patterns to try if no file fits those.
PATTERNS = {
    "users": (("*users*.tsv", "*behaviors*.tsv"), ("*interactions*.parquet",)),
    "items": (("*items*.tsv", "*news*.tsv"), ("*items*.parquet", "*news*.parquet")),
}
DESCRIPTION = "dataset.json"
DESCRIPTION_EXAMPLE = '{"users": "u.tsv", "items": "i.tsv"}'


@dataclass(frozen=True)
class Dataset:
    """A dataset read into memory and split."""

    folder: Path
    catalog: Catalog
    interactions: Interactions
    split: Split

    @property
    def name(self) -> str:
        """The name of the dataset's folder."""
        return self.folder.name

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file by path; dataset.json is included if it holds more than file names."""
        files = [self.catalog.path, self.interactions.path, *self.interactions.other_files]
        if description(self.folder).keys() - {*PATTERNS, "interactions"}:
            files.append(self.folder / DESCRIPTION)
        return {str(path): file_sha256(path) for path in files}

    def with_user_samples(self, user_fraction: float, eval_users: int, subset_seed: int) -> "Dataset":
        """Return the dataset with a fraction of its users to train on and `eval_users` of them (0: all) to evaluate."""
        split, users = self.split, self.interactions.users
        if user_fraction < 1:
            split = train_on_fraction(split, users, user_fraction, subset_seed)
        if 0 < eval_users < split.user_count:
            split = evaluate_on(split, users, eval_users, subset_seed)
        return replace(self, split=split)

    @property
    def summary(self) -> str:
        """One line: how much of the data is kept, how it is split, and what is left out on purpose."""
        split, read = self.split, self.interactions.sequences
        training, users = len(split.training_users), split.user_count
        kept, total = int(split.kept.lengths.sum()), int(read.lengths.sum())
        of_users = f" of {training:,} users" if training < users else ""
        of_all = f" of {total:,}" if kept < total else ""
        parts = [
            f"{self.name}: {users:,} users of {len(read):,}, {split.item_count:,} items of {len(self.catalog.ids):,}, "
            f"{kept:,} interactions{of_all} ({int(split.train.lengths.sum()):,} to train on{of_users})"
        ]
        if split.evaluated_users is not None:
            parts.append(f"{len(split.evaluated_users):,} users, drawn at random, are evaluated (--eval_users)")
        if split.count_cut_users(read):
            parts.append(f"of long sequences the last {split.max_seq_len + 1} interactions to train on (--max_seq_len)")
        if split.rule != Split.rule:
            targets = (f"{len(getattr(split, part)):,} {part}" for part in PARTS[1:])
            parts.append(f"split {split.rule}: {' and '.join(targets)} targets")
        if without := sum(split.count_without_history(part) for part in PARTS[1:]):
            parts.append(f"{without:,} interactions with nothing before them are not targets")
        return "; ".join(parts)


def find_file(folder: Path, role: str, given: str | None = None) -> Path:
    """Return the file of a dataset folder for `role` ("users" or "items").

    Tried in this order: the `given` path (relative to `folder` first), the entry `role` of `dataset.json` (for users,
    then its entry "interactions"), the only file whose name fits.

    Raises TransrecError if the folder or file is missing, if several names fit, or if the entry is not a name.
    """
    if not folder.is_dir():
        raise TransrecError(f"{folder}: no such dataset folder; give it with --dataset")
    if given:
        path = folder / given
        return path if path.exists() else resolve(given)
    described = description(folder)
    name = described.get(role)
    if name is None and role == "users":
        name = described.get("interactions")
    if isinstance(name, str):
        return folder / name
    if name is not None:
        raise TransrecError(f"{folder / DESCRIPTION}: {role!r} is {name!r}; it must be a file's name")
    for patterns in PATTERNS[role]:
        paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        if len(paths) == 1:
            return paths[0]
        if paths:
            problem = f"several files fit {' or '.join(patterns)}: {_first_names(paths)}"
            break
    else:
        wanted = " or ".join(pattern for patterns in PATTERNS[role] for pattern in patterns)
        problem = f"no file fits {wanted}; it holds {_first_names(sorted(folder.iterdir())) or 'no files'}"
    raise TransrecError(f"{folder}: {problem}; name it with --{role}_file or in {DESCRIPTION}")


def description(folder: Path) -> dict[str, Any]:
    """Return the content of dataset.json, {} if there is none. Raises TransrecError if it is not a JSON object."""
    path = folder / DESCRIPTION
    if not os.path.lexists(path):
        return {}
    try:
        with about_file(path, what="cannot be read"):
            described = read_json(path)
        if not isinstance(described, dict):
            raise ValueError
    except ValueError as error:
        raise TransrecError(f"{path}: not JSON like {DESCRIPTION_EXAMPLE}") from error
    return described


def check_not_raw(folder: Path) -> None:
    """Raise TransrecError, with the command to import it, for a folder in a publisher's own format."""
    from transrec.data.formats import MAX_DEPTH, recognise

    if not folder.is_dir() or os.path.lexists(folder / DESCRIPTION):
        return
    formats = recognise([folder])
    patterns = [pattern for groups in PATTERNS.values() for group in groups for pattern in group]
    if not formats and not any(any(folder.glob(pattern)) for pattern in patterns):
        formats = recognise([folder], general=True, max_depth=MAX_DEPTH)
        # The folder may hold several datasets: if several formats fit, it is unclear which of them is meant.
        formats = formats if len(formats) == 1 else {}
    for kind, why in formats.items():
        raise TransrecError(
            f"{folder}: is raw {kind} ({why}); import it, and give the new folder, with: python "
            f"scripts/import_dataset.py {kind} {shlex.quote(str(folder))} --out {shlex.quote(f'{folder}-imported')}"
        )


def _first_names(paths: list[Path]) -> str:
    """Return the names of the first few paths; hidden files are skipped."""
    names = [path.name + "/" * path.is_dir() for path in paths if not path.name.startswith(".")]
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def find_images(folder: str | Path, given: str | None = None) -> "ImageStore":
    """Return the image store of a dataset: the `given` store, or the only *.lmdb in the folder.

    Raises TransrecError if the folder has no store, or several.
    """
    from transrec.data.images.store import ImageStore

    folder = resolve(folder)
    stores = [resolve(given)] if given else sorted(folder.glob("*.lmdb"))
    if len(stores) != 1:
        problem = f"several image stores: {', '.join(p.name for p in stores)}" if stores else "no image store (*.lmdb)"
        raise TransrecError(
            f"{folder}: {problem}; name one with --images, or make it with Dataset/build_lmdb.py (Dataset/README.md)"
        )
    return ImageStore(stores[0])


@dataclass(frozen=True)
class Files:
    """The users and items files of a dataset, by name or path; None: the file that `find_file` finds in the folder."""

    users: str | None = None
    items: str | None = None


DEFAULT_FILES = Files()


def load_dataset(
    folder: str | Path,
    max_seq_len: int,
    min_seq_len: int,
    splitting: Splitting = LEAVE_ONE_OUT,
    files: Files = DEFAULT_FILES,
    with_times: bool = False,
) -> Dataset:
    """Find, read and split a dataset.

    Args:
        with_times: also read times that the split does not need, if the dataset has them and they can be read.

    Raises TransrecError as `check_not_raw`, `find_file`, `read_catalog`, `read_interactions` and `Splitting.split` do.
    """
    folder = resolve(folder)
    if files == DEFAULT_FILES:
        check_not_raw(folder)
    catalog = read_catalog(find_file(folder, "items", files.items))
    interactions = _load_interactions(folder, files.users, catalog, splitting.needs, with_times)
    split = splitting.split(interactions, len(catalog.ids), max_seq_len, min_seq_len)
    return Dataset(folder, catalog, interactions, split)


def _load_interactions(
    folder: Path, users_file: str | None, catalog: Catalog, needs: tuple[str, ...], with_times: bool
) -> Interactions:
    """Read the interactions, with times or parts if needed."""
    named = description(folder).get("users") if folder.is_dir() and not users_file else None
    if isinstance(named, dict):
        return _join_parts(folder, named, catalog, needs)
    path = find_file(folder, "users", users_file)
    if is_parquet(path):
        return interaction_rows.read_interactions(path, catalog.ids, needs, with_times)
    interactions = read_interactions(path, catalog)
    details = find_interaction_rows(folder)
    if not needs and not (with_times and details and find_spec("pyarrow")):
        return interactions
    if details is None:
        raise TransrecError(
            f"{path}: has no {' and '.join(needs)}, which --split {'time' if 'times' in needs else 'given'} needs; put "
            f"an interactions.parquet of {interaction_rows.COLUMNS} beside it, a row per interaction, or use --split "
            f"loo or --split ratio"
        )
    more = interaction_rows.read_interactions(details, catalog.ids, needs, with_times)
    ours, theirs = interactions.sequences, more.sequences
    same = interactions.users == more.users and np.array_equal(ours.stops, theirs.stops)
    if not (same and np.array_equal(ours.values, theirs.values)):
        raise TransrecError(
            f"{details}: does not hold the interactions of {path.name} in their order; import the dataset again, or "
            f"remove one of the two files"
        )
    return replace(interactions, times=more.times, parts=more.parts, other_files=(details,))


def find_interaction_rows(folder: Path) -> Path | None:
    """Return the file with more columns per interaction than users.tsv; None if there is not exactly one."""
    if isinstance(name := description(folder).get("interactions"), str):
        return folder / name
    paths = sorted(folder.glob(PATTERNS["users"][1][0]))
    return paths[0] if len(paths) == 1 else None


def _join_parts(folder: Path, named: dict[str, Any], catalog: Catalog, needs: tuple[str, ...]) -> Interactions:
    """Read the interactions from a publisher's own training, validation and test files."""
    by_part: dict[int, Interactions] = {}
    for name, file in named.items():
        part = interaction_rows.PART_NAMES.get(name)
        if part is None or part in by_part or not isinstance(file, str):
            raise TransrecError(
                f"{folder / DESCRIPTION}: 'users' has {name!r}: {file!r}; it must be a file's name, or one for each of "
                f"{', '.join(PARTS)}"
            )
        if is_parquet(path := folder / file):
            by_part[part] = interaction_rows.read_interactions(
                path, catalog.ids, [need for need in needs if need == "times"], with_times=True
            )
        else:
            by_part[part] = read_interactions(path, catalog)
    if 0 not in by_part:
        raise TransrecError(f"{folder / DESCRIPTION}: 'users' names no file of {PARTS[0]}; name it")
    number: dict[str, int] = {}
    owners, values, times, parts = [], [], [], []
    for part, interactions in sorted(by_part.items()):
        rows = np.array([number.setdefault(user, len(number)) for user in interactions.users], np.int64)
        owners.append(np.repeat(rows, interactions.sequences.lengths))
        values.append(interactions.sequences.values)
        parts.append(np.full(len(values[-1]), part, np.int8))
        times.append(interactions.times)
    first, *others = [by_part[part].path for part in sorted(by_part)]
    timed = all(part_times is not None for part_times in times)
    if "times" in needs and not timed:
        raise TransrecError(f"{first}: has no times, which --split time needs; use --split given, or Parquet files")
    owner = np.concatenate(owners)
    order = np.lexsort((np.concatenate(times), owner)) if timed else np.argsort(owner, kind="stable")
    stops = np.cumsum(np.bincount(owner, minlength=len(number)))
    return Interactions(
        first,
        list(number),
        Sequences(np.concatenate(values)[order], np.concatenate([[0], stops[:-1]]), stops),
        np.concatenate(times)[order] if timed else None,
        np.concatenate(parts)[order],
        tuple(others),
    )
