"""Writes metrics as a table, RUN/metrics.csv, with a row per epoch (`csv`).

python finetune.py --plugin docs/adding/csv_tracker.py --tracker csv --csv_separator ";" ...
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transrec.errors import TransrecError
from transrec.options import Options, flag
from transrec.paths import write_text
from transrec.tracking import Tracker, register


@dataclass(frozen=True)
class CSVOptions(Options):
    csv_separator: str = flag(",", "Separator between the cells of RUN/metrics.csv.", affects_results=False)

    def __post_init__(self):
        super().__post_init__()
        if len(self.csv_separator) != 1:
            raise TransrecError(f"--csv_separator {self.csv_separator!r}: must be one character")


@register("csv")
class CSV(Tracker):
    """Rewrites the file after each epoch, so that no rows of epochs that a resumed run repeats are left in it."""

    Options = CSVOptions

    def __init__(self, folder: Path, csv_separator: str):
        super().__init__(folder)
        self.separator = csv_separator

    def log(self, epochs: list[dict[str, Any]]) -> None:
        columns = [name for name, value in epochs[-1].items() if not isinstance(value, dict)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", delimiter=self.separator, lineterminator="\n")
        writer.writeheader()
        writer.writerows(epochs)
        write_text(self.folder / "metrics.csv", text.getvalue())
