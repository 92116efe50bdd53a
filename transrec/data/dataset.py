"""A dataset is a folder: finding its files and reading them."""

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
# What is looked for first, and what where there is none of it.
PATTERNS = {
    "users": (("*users*.tsv", "*behaviors*.tsv"), ("*interactions*.parquet",)),
    "items": (("*items*.tsv", "*news*.tsv"), ("*items*.parquet", "*news*.parquet")),
}
DESCRIPTION = "dataset.json"
LIKE = '{"users": "u.tsv", "items": "i.tsv"}'


@dataclass(frozen=True)
class Dataset:
    """A dataset read into memory and split."""

    folder: Path
    catalog: Catalog
    interactions: Interactions
    split: Split

    @property
    def name(self) -> str:
        """What its folder is called."""
        return self.folder.name

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each of its files, by path; of dataset.json where it says more than the files' names."""
        files = [self.catalog.path, self.interactions.path, *self.interactions.beside]
        if description(self.folder).keys() - {*PATTERNS, "interactions"}:
            files.append(self.folder / DESCRIPTION)
        return {str(path): file_sha256(path) for path in files}

    def drawing(self, user_fraction: float, eval_users: int, subset_seed: int) -> "Dataset":
        """The same dataset, of whose users that fraction is trained on, and so many are evaluated; 0: all."""
        split, users = self.split, self.interactions.users
        if user_fraction < 1:
            split = train_on_fraction(split, users, user_fraction, subset_seed)
        if 0 < eval_users < split.user_count:
            split = evaluate_on(split, users, eval_users, subset_seed)
        return replace(self, split=split)

    @property
    def summary(self) -> str:
        """One line: what is kept of what was read, how it is split, and what is left out on purpose."""
        split, read = self.split, self.interactions.sequences
        training, users = len(split.training_users), split.user_count
        kept, all_of = int(split.kept.lengths.sum()), int(read.lengths.sum())
        of_users = f" of {training:,} users" if training < users else ""
        of_all = f" of {all_of:,}" if kept < all_of else ""
        parts = [
            f"{self.name}: {users:,} users of {len(read):,}, {split.item_count:,} items of {len(self.catalog.ids):,}, "
            f"{kept:,} interactions{of_all} ({int(split.train.lengths.sum()):,} to train on{of_users})"
        ]
        if split.evaluated_users is not None:
            parts.append(f"{len(split.evaluated_users):,} users, drawn at random, are evaluated (--eval_users)")
        if split.cut_users(read):
            parts.append(f"of long sequences the last {split.max_seq_len + 1} interactions to train on (--max_seq_len)")
        if split.rule != Split.rule:
            targets = (f"{len(getattr(split, part)):,} {part}" for part in PARTS[1:])
            parts.append(f"split {split.rule}: {' and '.join(targets)} targets")
        if without := sum(split.without_history(part) for part in PARTS[1:]):
            parts.append(f"{without:,} interactions with nothing before them are no targets")
        return "; ".join(parts)


def find_file(folder: Path, role: str, given: str | None = None) -> Path:
    """The file of a dataset folder that plays `role` ("users" or "items").

    In this order: the `given` path (against `folder` first), the entry `role` of `dataset.json`, the only file whose
    name fits.

    Raises TransrecError when the folder or file is missing, or when several names fit.
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
        found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        if len(found) == 1:
            return found[0]
        if found:
            problem = f"several files fit {' or '.join(patterns)}: {_some(found)}"
            break
    else:
        wanted = " or ".join(pattern for patterns in PATTERNS[role] for pattern in patterns)
        problem = f"no file fits {wanted}; it holds {_some(sorted(folder.iterdir())) or 'no files'}"
    raise TransrecError(f"{folder}: {problem}; name it with --{role}_file or in {DESCRIPTION}")


def description(folder: Path) -> dict[str, Any]:
    """What dataset.json says; nothing where there is none. Raises TransrecError for one that is no JSON object."""
    path = folder / DESCRIPTION
    if not os.path.lexists(path):
        return {}
    try:
        with about_file(path, what="cannot be read"):
            described = read_json(path)
        if not isinstance(described, dict):
            raise ValueError
    except ValueError as error:
        raise TransrecError(f"{path}: not JSON like {LIKE}") from error
    return described


def check_not_raw(folder: Path) -> None:
    """Raise TransrecError for a folder as a publisher gives it out, with the command that imports it."""
    from transrec.data.formats import DEEPEST, recognise

    if not folder.is_dir() or os.path.lexists(folder / DESCRIPTION):
        return
    found = recognise([folder])
    patterns = [pattern for roles in PATTERNS.values() for either in roles for pattern in either]
    if not found and not any(any(folder.glob(pattern)) for pattern in patterns):
        found = recognise([folder], general=True, deepest=DEEPEST)
        # Of several folders each may be meant.
        found = found if len(found) == 1 else {}
    for kind, why in found.items():
        raise TransrecError(
            f"{folder}: is raw {kind} ({why}); import it, and give the new folder, with: python "
            f"scripts/import_dataset.py {kind} {shlex.quote(str(folder))} --out {shlex.quote(f'{folder}-imported')}"
        )


def _some(paths: list[Path]) -> str:
    """Their names, the first few of them."""
    names = [path.name + "/" * path.is_dir() for path in paths if not path.name.startswith(".")]
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def find_images(folder: str | Path, given: str | None = None) -> "ImageStore":
    """The image store of a dataset: the `given` one, or the only *.lmdb of its folder.

    Raises TransrecError when there is none, or several.
    """
    from transrec.data.images.store import ImageStore

    folder = resolve(folder)
    found = [resolve(given)] if given else sorted(folder.glob("*.lmdb"))
    if len(found) != 1:
        problem = f"several image stores: {', '.join(p.name for p in found)}" if found else "no image store (*.lmdb)"
        raise TransrecError(
            f"{folder}: {problem}; name one with --images, or make it with Dataset/build_lmdb.py (Dataset/README.md)"
        )
    return ImageStore(found[0])


@dataclass(frozen=True)
class Files:
    """The users and the items file of a dataset, by name or path; None: the one that its folder's names tell."""

    users: str | None = None
    items: str | None = None


FOUND = Files()


def load_dataset(
    folder: str | Path,
    max_seq_len: int,
    min_seq_len: int,
    splitting: Splitting = LEAVE_ONE_OUT,
    files: Files = FOUND,
    with_times: bool = False,
) -> Dataset:
    """Find, read and split a dataset.

    Args:
        with_times: read times too where there are any and can be read, though the split does not need them.

    Raises TransrecError as `check_not_raw`, `find_file`, `read_catalog`, `read_interactions` and `Splitting.split` do.
    """
    folder = resolve(folder)
    if files == FOUND:
        check_not_raw(folder)
    catalog = read_catalog(find_file(folder, "items", files.items))
    interactions = _interactions(folder, files.users, catalog, splitting.needs, with_times)
    split = splitting.split(interactions, len(catalog.ids), max_seq_len, min_seq_len)
    return Dataset(folder, catalog, interactions, split)


def _interactions(
    folder: Path, users_file: str | None, catalog: Catalog, needs: tuple[str, ...], with_times: bool
) -> Interactions:
    """The interactions with what is needed besides their order."""
    named = description(folder).get("users") if folder.is_dir() and not users_file else None
    if isinstance(named, dict):
        return _joined(folder, named, catalog, needs)
    path = find_file(folder, "users", users_file)
    if is_parquet(path):
        return interaction_rows.read_interactions(path, catalog.ids, needs, with_times)
    interactions = read_interactions(path, catalog)
    beside = interactions_beside(folder)
    if not needs and not (with_times and beside and find_spec("pyarrow")):
        return interactions
    if beside is None:
        raise TransrecError(
            f"{path}: has no {' and '.join(needs)}, which --split {'time' if 'times' in needs else 'given'} needs; put "
            f"an interactions.parquet of {interaction_rows.COLUMNS} beside it, a row per interaction, or use --split "
            f"loo or --split ratio"
        )
    more = interaction_rows.read_interactions(beside, catalog.ids, needs, with_times)
    ours, theirs = interactions.sequences, more.sequences
    same = interactions.users == more.users and np.array_equal(ours.stops, theirs.stops)
    if not (same and np.array_equal(ours.values, theirs.values)):
        raise TransrecError(
            f"{beside}: does not hold the interactions of {path.name} in their order; import the dataset again, or "
            f"remove one of the two files"
        )
    return replace(interactions, times=more.times, parts=more.parts, beside=(beside,))


def interactions_beside(folder: Path) -> Path | None:
    """The file that says more of each interaction than users.tsv."""
    if isinstance(name := description(folder).get("interactions"), str):
        return folder / name
    found = sorted(folder.glob(PATTERNS["users"][1][0]))
    return found[0] if len(found) == 1 else None


def _joined(folder: Path, named: dict[str, Any], catalog: Catalog, needs: tuple[str, ...]) -> Interactions:
    """The interactions of a publisher's own training, validation and test file."""
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
    for part, of in sorted(by_part.items()):
        rows = np.array([number.setdefault(user, len(number)) for user in of.users], np.int64)
        owners.append(np.repeat(rows, of.sequences.lengths))
        values.append(of.sequences.values)
        parts.append(np.full(len(values[-1]), part, np.int8))
        times.append(of.times)
    first, *others = [by_part[part].path for part in sorted(by_part)]
    timed = all(of is not None for of in times)
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
