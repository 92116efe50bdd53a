"""Split a dataset by user into a source and a target half, to try transfer within one dataset.

    python scripts/split_users.py --dataset Dataset/Scientific --out Dataset/Scientific-halves

A user belongs to the half that the first bit of SHA-256(user id) names: the halves do not depend on the file's order,
share no user, and each keeps the whole items file (items that nobody in a half touches drop out when it is read).
Interactions in Parquet, beside users.tsv or instead of it, are split alike, with all their columns. A used --out is
written anew: what an earlier split left there and this one does not write is removed.
"""

import hashlib
import shutil
from contextlib import ExitStack
from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.data import tsv
from transrec.data.dataset import find_file, interactions_beside
from transrec.data.interaction_rows import USER
from transrec.data.parquet import ROWS_AT_ONCE, is_parquet, reading
from transrec.errors import TransrecError, about_file, printable
from transrec.paths import atomic_write, make_folder, resolve, write_text

HALVES = ("source", "target")
USERS, ROWS, ITEMS = "users.tsv", "interactions.parquet", ("items.tsv", "items.parquet")


def half_of(user: str, share: float) -> int | None:
    """The place in HALVES of a user; None for one that is left out, since only `share` of each half's are kept."""
    digest = hashlib.sha256(user.encode()).digest()
    return digest[0] & 1 if int.from_bytes(digest[1:5]) < share * 2**32 else None


def split_users(dataset: Path, out: Path, share: float) -> dict[str, int]:
    """Write OUT/source and OUT/target; returns the users in each. `share` keeps that fraction of each half's users."""
    users_path, items_path = find_file(dataset, "users"), find_file(dataset, "items")
    beside = users_path if is_parquet(users_path) else interactions_beside(dataset)
    items = ITEMS[is_parquet(items_path)]
    written = {items} | ({ROWS} if beside else set()) | (set() if is_parquet(users_path) else {USERS})
    for half in HALVES:
        if dataset.resolve() == (out / half).resolve():
            raise TransrecError(f"--out {out}: its {half} is the dataset itself; give another folder")
        make_folder(out / half, "--out")
        for name in {USERS, ROWS, *ITEMS} - written:
            with about_file(out / half / name, "give another folder with --out"):
                (out / half / name).unlink(missing_ok=True)
        with atomic_write(out / half / items) as temporary:
            shutil.copyfile(items_path, temporary)
    counts = split_rows(beside, out, share) if beside else {}
    return counts if is_parquet(users_path) else split_lines(users_path, out, share)


def split_lines(path: Path, out: Path, share: float) -> dict[str, int]:
    """Write users.tsv of each half; returns the users in each."""
    lines: dict[str, list[str]] = {half: [] for half in HALVES}
    for _, line in tsv.lines(path, "users"):
        half = half_of(line.partition("\t")[0], share)
        if half is not None:
            lines[HALVES[half]].append(line)
    for half in HALVES:
        write_text(out / half / USERS, "".join(f"{line}\n" for line in lines[half]))
    return {half: len(lines[half]) for half in HALVES}


def split_rows(path: Path, out: Path, share: float) -> dict[str, int]:
    """Write interactions.parquet of each half, its rows in their order; returns the users in each.

    Raises TransrecError as `reading`, and where rows have no user.
    """
    halves: dict[str, int | None] = {}
    with reading(path) as file, ExitStack() as stack:
        import pyarrow  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import ParquetWriter  # pyright: ignore[reportMissingImports]

        if USER not in file.schema_arrow.names:
            raise TransrecError(f"{path}: has no column {USER!r} among {', '.join(file.schema_arrow.names)}; add it")
        temporaries = [stack.enter_context(atomic_write(out / half / ROWS)) for half in HALVES]
        with ExitStack() as open_files:
            writers = [open_files.enter_context(ParquetWriter(to, file.schema_arrow)) for to in temporaries]
            for batch in file.iter_batches(ROWS_AT_ONCE):
                if batch.column(USER).null_count:
                    raise TransrecError(f"{path}: has rows without {USER}; every row needs one")
                coded = batch.column(USER).cast(pyarrow.string()).dictionary_encode()
                users = coded.dictionary.to_pylist()
                halves |= {user: half_of(user, share) for user in users if user not in halves}
                for number, writer in enumerate(writers):
                    is_here = pyarrow.array([halves[user] == number for user in users], pyarrow.bool_())
                    writer.write_batch(batch.filter(is_here.take(coded.indices)))
    return {half: list(halves.values()).count(number) for number, half in enumerate(HALVES)}


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="dataset folder to split")
    parser.add_argument("--out", type=Path, required=True, help="folder for source/ and target/")
    parser.add_argument("--share", type=float, default=1.0, help="keep this fraction of each half's users")
    with reporting():
        arguments = parser.parse_args()
        if not 0 < arguments.share <= 1:
            parser.error(f"--share {arguments.share}: must be above 0 and at most 1")
        for name, count in split_users(resolve(arguments.dataset), arguments.out, arguments.share).items():
            print(printable(f"{arguments.out / name}: {count:,} users"))
