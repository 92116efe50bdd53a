"""Write a report on finished runs or studies as one HTML page that works offline.

    python scripts/report.py runs/adapters --out report.html

The page has a sortable table of results that can be copied as LaTeX or CSV, learning curves, accuracy against cost,
slices of the targets, tests between all pairs of methods, settings that differ, environments, and data cards. Runs that
differ only in their seed are one row. Nothing is trained or ranked again.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import printable
from transrec.paths import make_folder, write_text
from transrec.plugins import load_plugins
from transrec.reports.report import report

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_STUDY", help="folders of runs, or a study's --out")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file for the page")
    parser.add_argument("--title", default="", help="title of the page (default: the names of the folders)")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=[], help="plugins that the runs were started with"
    )
    with reporting():
        arguments = parser.parse_args()
        make_folder(arguments.out.parent, "--out")
        load_plugins(arguments.plugin)
        write_text(arguments.out, report(arguments.runs, arguments.plugin, arguments.title))
        print(printable(f"page: {arguments.out}"))
