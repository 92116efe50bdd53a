"""Output of a benchmark: a table to read, and figures for bench.py, which collects those of many benchmarks."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from transrec.reports.tables import markdown

# Environment variable with the path of the file from which bench.py reads a script's figures.
FIGURES = "TRANSREC_FIGURES"


def report(header: Sequence[str], rows: Sequence[Sequence[str]], figures: Mapping[str, float] | None = None) -> None:
    """Print a table as Markdown; if bench.py started the script, write table and figures to its file.

    Args:
        figures: figures by name. Several calls accumulate.
    """
    table = markdown(list(header), [list(row) for row in rows])
    print(table, flush=True)
    if name := os.environ.get(FIGURES):
        file = Path(name)
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"tables": [], "figures": {}}
        results["tables"].append(table)
        results["figures"] |= figures or {}
        file.write_text(json.dumps(results), encoding="utf-8")
