"""List the files of hidden states that runs keep, and remove those that no run needs any more.

    python scripts/states.py
    python scripts/states.py Dataset/Scientific /scratch/states
    python scripts/states.py --remove_unused_since 2026-06-01 --yes

Runs find a file by what it was made of, and make it again when it is not there: removing one costs time, never numbers.
Without --yes it only says what it would remove. A file that a run has open stays.
"""

from datetime import date, datetime, time
from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import TransrecError, printable
from transrec.paths import resolve
from transrec.reports.states import StoredStates, find_states, listing


def chosen(files: list[StoredStates], names: list[str], since: str | None) -> list[StoredStates]:
    """The files of those names, and those not used since a date.

    Raises TransrecError for a name that is none of the files', and for a date that is none.
    """
    if unknown := sorted(set(names) - {of.name for of in files}):
        raise TransrecError(f"--remove {unknown[0]}: no such file of hidden states; the list without flags names them")
    try:
        first = datetime.combine(date.fromisoformat(since), time.min) if since else datetime.min
    except ValueError as error:
        raise TransrecError(f"--remove_unused_since {since}: not a date like 2026-06-01") from error
    return [of for of in files if of.name in names or of.last_used < first]


def main(folders: list[Path], names: list[str], since: str | None, yes: bool) -> None:
    files = find_states(folders)
    size = sum(of.size for of in files) / 2**20
    print(printable(f"{len(files)} files of hidden states, {size:,.1f} MiB, below {', '.join(map(str, folders))}"))
    if not names and not since:
        print(listing(files), end="\n" * bool(files))
        return
    freed = 0
    for of in chosen(files, names, since):
        if stays := yes and not of.remove():
            said = "stays, a run is using it"
        else:
            said = "removed" if yes else "would be removed"
        freed += of.size * (not stays)
        print(printable(f"{of.path}: {of.size / 2**20:,.1f} MiB, last used {of.last_used:%Y-%m-%d %H:%M}; {said}"))
    print(f"{freed / 2**20:,.1f} MiB {'removed' if yes else 'would be removed; --yes removes them'}")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument(
        "folders",
        nargs="*",
        default=["Dataset"],
        metavar="FOLDER",
        help="folders to look in and below: datasets, and what runs were given as --state_cache (default: Dataset)",
    )
    parser.add_argument("--remove", nargs="+", default=[], metavar="NAME", help="remove the files of these names")
    parser.add_argument(
        "--remove_unused_since", metavar="DATE", help="remove the files that no run has opened since that date"
    )
    parser.add_argument("--yes", action="store_true", help="remove them; without it they are only named")
    with reporting():
        given = parser.parse_args()
        main([resolve(folder) for folder in given.folders], given.remove, given.remove_unused_since, given.yes)
