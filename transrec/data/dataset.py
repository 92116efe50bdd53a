"""A dataset is a folder: finding its files and reading them."""

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from transrec.data.catalog import Catalog, read_catalog
from transrec.data.interactions import Interactions, Split, leave_one_out, read_interactions, train_on_fraction
from transrec.errors import TransrecError, about_file
from transrec.paths import file_sha256, resolve
from transrec.untrusted import read_json

if TYPE_CHECKING:
    from transrec.data.images.store import ImageStore

NAMES_SHOWN = 10
PATTERNS = {"users": ("*users*.tsv", "*behaviors*.tsv"), "items": ("*items*.tsv", "*news*.tsv")}


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
        """SHA-256 of each of its files, by path."""
        return {str(path): file_sha256(path) for path in (self.catalog.path, self.interactions.path)}

    def with_fraction(self, user_fraction: float, subset_seed: int) -> "Dataset":
        """The same dataset, of which only that fraction of the users is trained on."""
        if user_fraction == 1:
            return self
        users = self.interactions.users
        return replace(self, split=train_on_fraction(self.split, users, user_fraction, subset_seed))

    @property
    def summary(self) -> str:
        split, read = self.split, self.interactions.sequences
        training, kept = len(split.training_users), split.user_count
        of_users = f" of {training:,} users" if training < kept else ""
        return (
            f"{self.name}: {split.user_count:,} users of {len(read):,}, {split.item_count:,} items of "
            f"{len(self.catalog.ids):,}, {int(split.kept.lengths.sum()):,} interactions "
            f"({int(split.train.lengths.sum()):,} to train on{of_users})"
        )


def find_file(folder: Path, role: str, given: str | None = None) -> Path:
    """The file of a dataset folder that plays `role` ("users" or "items").

    In this order: the `given` path (against `folder` first), the entry `role` of `dataset.json`, the only file whose
    name fits.

    Raises TransrecError when the folder or file is missing, or when several names fit.
    """
    if not folder.is_dir():
        raise TransrecError(f"{folder}: no such dataset folder; give it with --dataset")
    described = folder / "dataset.json"
    if given:
        path = folder / given
        return path if path.exists() else resolve(given)
    if os.path.lexists(described):
        try:
            with about_file(described, what="cannot be read"):
                name = read_json(described).get(role)
        except (ValueError, AttributeError) as error:
            raise TransrecError(f'{described}: not JSON like {{"users": "u.tsv", "items": "i.tsv"}}') from error
        if isinstance(name, str):
            return folder / name
        if name is not None:
            raise TransrecError(f"{described}: {role!r} is {name!r}; it must be a file's name")
    found = sorted({path for pattern in PATTERNS[role] for path in folder.glob(pattern)})
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(PATTERNS[role])
    if found:
        problem = f"several files fit {wanted}: {_some(found)}"
    else:
        problem = f"no file fits {wanted}; it holds {_some(sorted(folder.iterdir())) or 'no files'}"
    raise TransrecError(f"{folder}: {problem}; name it with --{role}_file or in {described.name}")


def check_not_raw(folder: Path) -> None:
    """Raise TransrecError for a folder as a publisher gives it out, with the command that imports it."""
    from transrec.data.formats import recognise

    if not folder.is_dir() or os.path.lexists(folder / "dataset.json"):
        return
    for kind, why in recognise([folder]).items():
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


def load_dataset(
    folder: str | Path,
    max_seq_len: int,
    min_seq_len: int,
    users_file: str | None = None,
    items_file: str | None = None,
    user_fraction: float = 1.0,
    subset_seed: int = 0,
) -> Dataset:
    """Find, read and split a dataset; only `user_fraction` of the users are trained on.

    Raises TransrecError as `check_not_raw`, `find_file`, `read_catalog`, `read_interactions` and `leave_one_out` do.
    """
    folder = resolve(folder)
    if not (users_file or items_file):
        check_not_raw(folder)
    items_path = find_file(folder, "items", items_file)
    users_path = find_file(folder, "users", users_file)
    catalog = read_catalog(items_path)
    interactions = read_interactions(users_path, catalog)
    whole = Dataset(folder, catalog, interactions, leave_one_out(interactions, max_seq_len, min_seq_len))
    return whole.with_fraction(user_fraction, subset_seed)
