"""Finished runs that are ranked anew with their models, where the ranks that they keep do not tell what is asked."""

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
class Anew:
    """How targets are ranked where a run was told otherwise.

    Attributes:
        mask_history: "seen", "none" or "seen_but_target" (docs/protocol.md); None: as the run was told.
        catalogue: "all": every item that the items file lists is ranked; None: as the run was told.
        plugins: files that may run, among them all that the runs were started with.
        device: where models run.
    """

    mask_history: str | None = None
    catalogue: str | None = None
    plugins: Sequence[str | Path] = ()
    device: torch.device | str = "cpu"

    def changed(self, settings: Settings) -> Settings:
        """A run's settings as the targets are ranked."""
        values = {"mask_history": self.mask_history, "catalogue": self.catalogue}
        return with_values(settings, **{name: value for name, value in values.items() if value})

    def run(self, folder: Path) -> FinishedRun:
        """The run, which ranks the items of the catalogue. Raises TransrecError as `load_run` and `add_items`."""
        run = load_run(folder, self.plugins).to(self.device)
        if self.catalogue == "all" != run.settings.as_dict()["catalogue"]:
            run.add_items(run.dataset.catalog.path)
        return run

    def ranking(self, folder: Path, part: str, metrics: Sequence[Metric], cutoffs: Sequence[int]) -> Ranking:
        """Of the targets of "validation" or "test", with all that the metrics at the cut-offs need."""
        print(printable(f"ranks anew: {folder}"), file=sys.stderr, flush=True)
        return self.run(folder).ranking(part, metrics, cutoffs, self.mask_history)

    def ranks(self, folder: Path, settings: Settings, part: str) -> np.ndarray:
        """RANK [T] of the targets of "validation" or "test"; those that the run keeps where it was told the same."""
        if self.changed(settings).as_dict() == settings.as_dict():
            return read_ranks(folder, part)
        print(printable(f"ranks anew: {folder}"), file=sys.stderr, flush=True)
        return self.run(folder).ranks(part, self.mask_history)
