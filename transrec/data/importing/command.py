"""The command line of an import."""

import sys
from collections.abc import Sequence

from transrec.arguments import OptionsParser, Parser
from transrec.command import reporting
from transrec.data.formats import FORMATS
from transrec.data.importing import card
from transrec.data.importing.job import AUTO, guess, import_dataset
from transrec.data.importing.options import ImportOptions
from transrec.errors import printable
from transrec.options import Options
from transrec.paths import resolve
from transrec.plugins import load_plugins
from transrec.registry import Choice

COMMON = ("out", "min_rating", "k_core", "since", "until", "duplicates", "overwrite", "memory")


def run() -> None:
    """Import as the command line says and print the data card. Exits as described in `transrec.command.reporting`."""
    with reporting():
        main(sys.argv[1:])


def main(words: Sequence[str]) -> None:
    """Import as the words of a command line say. Raises TransrecError like `import_dataset`."""
    first = Parser(add_help=False)
    first.add_argument("kind", nargs="?", default=AUTO)
    first.add_argument("--plugin", action="extend", nargs="+", default=[])
    early, _ = first.parse_known_args(words)
    load_plugins(early.plugin)
    if early.kind == AUTO:
        _import_guessed(words)
    else:
        _import(early.kind, words, "")


def _import_guessed(words: Sequence[str]) -> None:
    """Guess the format and import with it, accepting the flags of that format."""
    paths = _parser(AUTO).parse_known_args(words)[0].paths
    kind, why = guess(paths)
    print(printable(f"format {kind}: {why}"), file=sys.stderr)
    _import(kind, words, why)


def _import(kind: str, words: Sequence[str], why: str) -> None:
    """Import as the words of a command line say, in the format `kind`."""
    parser = _parser(kind)
    options, own = parser.parse_options(words)
    assert isinstance(options, ImportOptions)
    result = import_dataset(Choice(kind, FORMATS.get(kind), own), parser.parse_args(words).paths, options, why)
    print("\n".join(map(printable, card.text(result).splitlines())))
    print(printable(f"written: {resolve(options.out)}; look at it with: python scripts/check_dataset.py {options.out}"))


def _parser(kind: str) -> OptionsParser:
    groups: list[tuple[str, type[Options]]] = [("import", ImportOptions)]
    if kind != AUTO:
        groups.append((f"format {kind}", FORMATS.get(kind).Options))
    parser = OptionsParser(groups, sys.modules["__main__"].__doc__, COMMON)
    parser.usage = "%(prog)s KIND PATH ... --out FOLDER"
    kinds = "; ".join(f"{name}: {FORMATS.get(name).reads}" for name in FORMATS.names())
    parser.add_argument("kind", metavar="KIND", help=f"format of the source. auto: guess; {kinds}")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="files of the source, or folders that hold them")
    return parser
