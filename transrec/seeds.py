"""Seeds of torch's random numbers."""

import zlib

import numpy as np
import torch


def seed(*drawn_for: int | str) -> None:
    """Seed torch by what is drawn next: numbers, as the run's seed, and names of parts. Order matters, nothing else."""
    numbers = [zlib.crc32(one.encode()) if isinstance(one, str) else one for one in drawn_for]
    drawn = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    # For an accelerator that is not there torch would keep a traceback, which takes a hundred times as long.
    (torch if torch.accelerator.is_available() else torch.default_generator).manual_seed(drawn)
