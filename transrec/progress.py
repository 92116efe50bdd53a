"""Progress bars, printed as separate lines if standard error is not a terminal."""

import os
import sys
from time import monotonic
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60


class Bar(tqdm):
    """tqdm's bar on a terminal; elsewhere one line per minute (or TQDM_MININTERVAL seconds), and one at the end."""

    def __init__(self, *args: Any, **options: Any):
        self._prints_lines = not sys.stderr.isatty()
        self._last_line_time = monotonic()
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        if not self._prints_lines:
            return super().display(msg, pos)
        every = self.mininterval if "TQDM_MININTERVAL" in os.environ else SECONDS_BETWEEN_LINES
        if msg is None and monotonic() - self._last_line_time >= every:
            self._write_line()
        return None

    def clear(self, nolock: bool = False) -> None:
        if not self._prints_lines:
            super().clear(nolock)

    def close(self) -> None:
        if self._prints_lines and self.leave and not self.disable:
            self._write_line()
            self.leave = False
        super().close()

    def _write_line(self) -> None:
        self._last_line_time = monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()
