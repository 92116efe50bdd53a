"""Seeds torch's random numbers."""

import zlib

import numpy as np
import torch


def seed(*keys: int | str) -> None:
    """Seed torch with numbers (such as the run's seed) and names of parts. Nothing but these and their order counts."""
    numbers = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    drawn = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    # Without an accelerator, torch.manual_seed would store a traceback for it, which takes a hundred times as long.
    (torch if torch.accelerator.is_available() else torch.default_generator).manual_seed(drawn)
