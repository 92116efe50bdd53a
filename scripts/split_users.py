"""Split a dataset by user into a source and a target half, to try transfer within one dataset.

    python scripts/split_users.py --dataset Dataset/Scientific --out Dataset/Scientific-halves

A user belongs to the half that the first bit of SHA-256(user id) names: the halves do not depend on the file's order,
share no user, and each keeps the whole items file (items that nobody in a half touches drop out when it is read).
"""

import hashlib
import shutil
from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.data import tsv
from transrec.data.dataset import find_file
from transrec.errors import printable
from transrec.paths import atomic_write, make_folder, resolve, write_text

HALVES = ("source", "target")


def split_users(dataset: Path, out: Path, share: float) -> dict[str, int]:
    """Write OUT/source and OUT/target; returns the users in each. `share` keeps that fraction of each half's users."""
    users_path, items_path = find_file(dataset, "users"), find_file(dataset, "items")
    lines: dict[str, list[str]] = {half: [] for half in HALVES}
    for _, line in tsv.lines(users_path, "users"):
        digest = hashlib.sha256(line.partition("\t")[0].encode()).digest()
        if int.from_bytes(digest[1:5]) < share * 2**32:
            lines[HALVES[digest[0] & 1]].append(line)
    for half in HALVES:
        folder = out / half
        make_folder(folder, "--out")
        write_text(folder / "users.tsv", "".join(f"{line}\n" for line in lines[half]))
        with atomic_write(folder / "items.tsv") as temporary:
            shutil.copyfile(items_path, temporary)
    return {half: len(lines[half]) for half in HALVES}


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
