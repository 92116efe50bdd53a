"""Write the documentation of every module of the package as HTML; needs pdoc (`pip install -e .[docs]`).

    python scripts/api_docs.py --out runs/docs

`make docs` does the same in the repository's own environment.
"""

import sys
from pathlib import Path
from pkgutil import walk_packages

import transrec
from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import TransrecError, printable
from transrec.paths import make_folder


def write_docs(out: Path) -> int:
    """Write one page per module to `out`; returns the number of pages. Raises TransrecError if pdoc is missing."""
    try:
        import pdoc
    except ImportError as error:
        raise TransrecError("pdoc is not installed; install it with: pip install -e .[docs]") from error
    make_folder(out, "--out")
    # The package loads its public names lazily, and pdoc shows only names that have been loaded.
    for name in transrec.__all__:
        getattr(transrec, name)
    modules = ["transrec", *(module.name for module in walk_packages(transrec.__path__, "transrec."))]
    # pdoc finds the modules of a package itself, except for a package that lists its public names in __all__.
    named = [name for name in modules[1:] if hasattr(sys.modules[name.rpartition(".")[0]], "__all__")]
    pdoc.render.configure(docformat="google")
    pdoc.pdoc("transrec", *named, output_directory=out)
    return len(modules)


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/docs"), help="folder for the pages")
    with reporting():
        out = parser.parse_args().out
        print(printable(f"{write_docs(out)} modules, from {out / 'index.html'} on"))
