"""Rank the targets of finished runs again with their models, if the ranks that the runs stored are not enough."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from transrec.errors import printable
from transrec.finished import FinishedRun, load_run, with_values
from transrec.settings import Settings
from transrec.training.metrics import Metric, Ranking
from transrec.training.ranks import read_ranks


@dataclass(frozen=True)
class Reranking:
    """Ranking options that replace those of a finished run.

    Attributes:
        mask_history: "seen", "none" or "seen_but_target" (docs/protocol.md); None: the run's own setting.
        catalogue: "all": rank every item that the items file lists; None: the run's own setting.
        plugins: files that may be executed, including all plugins that the runs were started with.
        device: device that the models run on.
    """

    mask_history: str | None = None
    catalogue: str | None = None
    plugins: Sequence[str | Path] = ()
    device: torch.device | str = "cpu"

    def apply(self, settings: Settings) -> Settings:
        """Return a run's settings with these ranking options applied."""
        values = {"mask_history": self.mask_history, "catalogue": self.catalogue}
        return with_values(settings, **{name: value for name, value in values.items() if value})

    def load(self, folder: Path) -> FinishedRun:
        """Load a run that ranks the items of `catalogue`. Raises TransrecError as `load_run` and `add_items` do."""
        run = load_run(folder, self.plugins).to(self.device)
        if self.catalogue == "all" != run.settings.as_dict()["catalogue"]:
            run.add_items(run.dataset.catalog.path)
        return run

    def ranking(self, folder: Path, part: str, metrics: Sequence[Metric], cutoffs: Sequence[int]) -> Ranking:
        """Rank the "validation" or "test" targets again; the result has all that the metrics at the cut-offs need."""
        print(printable(f"ranks anew: {folder}"), file=sys.stderr, flush=True)
        return self.load(folder).ranking(part, metrics, cutoffs, self.mask_history)

    def ranks(self, folder: Path, settings: Settings, part: str) -> np.ndarray:
        """Return RANK [T] of the "validation" or "test" targets: the stored ranks if no option of the run changes."""
        if self.apply(settings).as_dict() == settings.as_dict():
            return read_ranks(folder, part)
        print(printable(f"ranks anew: {folder}"), file=sys.stderr, flush=True)
        return self.load(folder).ranks(part, self.mask_history)
