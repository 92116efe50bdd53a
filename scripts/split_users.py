"""Split a dataset by user into a source half and a target half, to study transfer within one dataset.

    python scripts/split_users.py --dataset Dataset/Scientific --out Dataset/Scientific-halves

The lowest bit of the first byte of SHA-256(user id) decides a user's half, so the halves do not depend on the file's
order and share no user. Each half keeps the complete items file (items without interactions in a half are dropped when
it is read). Interactions in Parquet, in addition to users.tsv or instead of it, are split in the same way, with all
their columns. An existing --out is overwritten: files of an earlier split that this one does not write are removed.
"""

import hashlib
import shutil
from contextlib import ExitStack
from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.data import tsv
from transrec.data.dataset import description, find_file, find_interaction_rows
from transrec.data.interaction_rows import USER
from transrec.data.parquet import ROWS_AT_ONCE, is_parquet, open_parquet
from transrec.errors import TransrecError, about_file, printable
from transrec.paths import atomic_write, make_folder, resolve, write_text

HALVES = ("source", "target")
USERS, ROWS, ITEMS = "users.tsv", "interactions.parquet", ("items.tsv", "items.parquet")


def half_of(user: str, share: float) -> int | None:
    """Return a user's index in HALVES; None if the user is left out because only `share` of each half is kept."""
    digest = hashlib.sha256(user.encode()).digest()
    return digest[0] & 1 if int.from_bytes(digest[1:5]) < share * 2**32 else None


def split_users(dataset: Path, out: Path, share: float) -> dict[str, int]:
    """Write OUT/source and OUT/target with a fraction `share` of each half's users; returns how many users each has."""
    if isinstance(description(dataset).get("users"), dict):
        raise TransrecError(
            f"{dataset}: its dataset.json names several files of users, and this script splits one; join them first"
        )
    users_path, items_path = find_file(dataset, "users"), find_file(dataset, "items")
    interactions = users_path if is_parquet(users_path) else find_interaction_rows(dataset)
    items = ITEMS[is_parquet(items_path)]
    written = {items} | ({ROWS} if interactions else set()) | (set() if is_parquet(users_path) else {USERS})
    for half in HALVES:
        if dataset.resolve() == (out / half).resolve():
            raise TransrecError(f"--out {out}: its {half} is the dataset itself; give another folder")
        make_folder(out / half, "--out")
        for name in {USERS, ROWS, *ITEMS} - written:
            with about_file(out / half / name, "give another folder with --out"):
                (out / half / name).unlink(missing_ok=True)
        with atomic_write(out / half / items) as temporary:
            shutil.copyfile(items_path, temporary)
    counts = split_rows(interactions, out, share) if interactions else {}
    return counts if is_parquet(users_path) else split_lines(users_path, out, share)


def split_lines(path: Path, out: Path, share: float) -> dict[str, int]:
    """Write users.tsv of each half; returns the number of users in each."""
    lines: dict[str, list[str]] = {half: [] for half in HALVES}
    for _, line in tsv.lines(path, "users"):
        half = half_of(line.partition("\t")[0], share)
        if half is not None:
            lines[HALVES[half]].append(line)
    for half in HALVES:
        write_text(out / half / USERS, "".join(f"{line}\n" for line in lines[half]))
    return {half: len(lines[half]) for half in HALVES}


def split_rows(path: Path, out: Path, share: float) -> dict[str, int]:
    """Write interactions.parquet of each half, with rows in their original order; returns the number of users in each.

    Raises TransrecError as `open_parquet` does, and if a row has no user.
    """
    halves: dict[str, int | None] = {}
    with open_parquet(path) as file, ExitStack() as stack:
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
