"""What a benchmark tells: a table for people, and figures for bench.py, which gathers those of many."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from transrec.reports.tables import markdown

# Names the file that bench.py reads a script's figures from.
FIGURES = "TRANSREC_FIGURES"


def tell(header: Sequence[str], rows: Sequence[Sequence[str]], figures: Mapping[str, float] | None = None) -> None:
    """Print a table as Markdown, and hand its figures on to bench.py where that has started the script.

    Args:
        figures: by name; several calls add up.
    """
    table = markdown(list(header), [list(row) for row in rows])
    print(table, flush=True)
    if name := os.environ.get(FIGURES):
        file = Path(name)
        told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"tables": [], "figures": {}}
        told["tables"].append(table)
        told["figures"] |= figures or {}
        file.write_text(json.dumps(told), encoding="utf-8")
