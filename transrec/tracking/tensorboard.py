"""TensorBoard tracker: `tensorboard` writes to RUN/tensorboard."""

from pathlib import Path
from typing import Any

from transrec.errors import TransrecError
from transrec.tracking.base import Tracker, register


@register("tensorboard")
class TensorBoard(Tracker):
    """Writes a scalar for each number in an epoch's line of metrics.jsonl."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TransrecError("--tracker tensorboard: pip install tensorboard first") from error
        self.writer = SummaryWriter(folder / "tensorboard")

    def log(self, epochs: list[dict[str, Any]]) -> None:
        for name, value in epochs[-1].items():
            if not isinstance(value, dict):
                self.writer.add_scalar(name.replace(" ", "/"), value, epochs[-1]["epoch"])

    def close(self) -> None:
        self.writer.close()
