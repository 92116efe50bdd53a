"""List the stored files of hidden states, and remove those that no run needs any more.

    python scripts/states.py
    python scripts/states.py Dataset/Scientific /scratch/states
    python scripts/states.py --remove_unused_since 2026-06-01 --yes

Runs find a file by its provenance and compute it again if it is missing, so removing one costs time but changes no
results. Without --yes, the script only lists what it would remove. A file that a run has open is never removed.
"""

from datetime import date, datetime, time
from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import TransrecError, printable
from transrec.paths import resolve
from transrec.reports.states import StoredStates, find_states, listing


def select_files(files: list[StoredStates], names: list[str], since: str | None) -> list[StoredStates]:
    """Return the files with the given names, and the files not used since a date.

    Raises TransrecError for a name that no file has, and for an invalid date.
    """
    if unknown := sorted(set(names) - {file.name for file in files}):
        raise TransrecError(f"--remove {unknown[0]}: no such file of hidden states; the list without flags names them")
    try:
        first = datetime.combine(date.fromisoformat(since), time.min) if since else datetime.min
    except ValueError as error:
        raise TransrecError(f"--remove_unused_since {since}: not a date like 2026-06-01") from error
    return [file for file in files if file.name in names or file.last_used < first]


def main(folders: list[Path], names: list[str], since: str | None, yes: bool) -> None:
    files = find_states(folders)
    size = sum(file.size for file in files) / 2**20
    print(printable(f"{len(files)} files of hidden states, {size:,.1f} MiB, below {', '.join(map(str, folders))}"))
    if not names and not since:
        print(listing(files), end="\n" * bool(files))
        return
    freed = 0
    for file in select_files(files, names, since):
        if stays := yes and not file.remove():
            outcome = "stays, a run is using it"
        else:
            outcome = "removed" if yes else "would be removed"
        freed += file.size * (not stays)
        print(
            printable(
                f"{file.path}: {file.size / 2**20:,.1f} MiB, last used {file.last_used:%Y-%m-%d %H:%M}; {outcome}"
            )
        )
    print(f"{freed / 2**20:,.1f} MiB {'removed' if yes else 'would be removed; --yes removes them'}")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument(
        "folders",
        nargs="*",
        default=["Dataset"],
        metavar="FOLDER",
        help="folders to search, with subfolders: datasets, and values of runs' --state_cache (default: Dataset)",
    )
    parser.add_argument("--remove", nargs="+", default=[], metavar="NAME", help="remove the files with these names")
    parser.add_argument(
        "--remove_unused_since", metavar="DATE", help="remove the files that no run has used since this date"
    )
    parser.add_argument("--yes", action="store_true", help="really remove the files; without it they are only listed")
    with reporting():
        arguments = parser.parse_args()
        main(
            [resolve(folder) for folder in arguments.folders],
            arguments.remove,
            arguments.remove_unused_since,
            arguments.yes,
        )
