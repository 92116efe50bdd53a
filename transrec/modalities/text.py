"""Titles, read by a text backbone (`text`)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.data.catalog import Tokens, cached_tokens, check_texts
from transrec.data.dataset import Dataset
from transrec.data.features import TextFeatures
from transrec.errors import warn
from transrec.modalities.base import BackboneModality, register
from transrec.models import backbone
from transrec.models.backbone import Pooling
from transrec.models.towers import BackboneTower
from transrec.paths import make_folder
from transrec.training.distributed import World


class TextTower(BackboneTower):
    """Runs a text backbone. Its last state is what that gives out, in decoders behind their last norm.

    Args:
        pooling: what stands for a text: its first token, its last, or the mean of all.
    """

    modality = "text"
    input_count = 2
    ends_in_output = True

    def __init__(self, backbone: nn.Module, embedding_dim: int, pooling: Pooling = "cls"):
        super().__init__(backbone, embedding_dim)
        self.pooling = pooling

    def read_out(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids int64 [N, T], attention_mask int64 [N, T] (1 = token) -> [N, D]."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.pool(hidden, input_ids, attention_mask)

    def pool(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return super().pool(hidden)
        # Soft prompts make a text longer at its front.
        mask = F.pad(attention_mask, (hidden.shape[1] - attention_mask.shape[1], 0), value=1)
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        weights = (mask / mask.sum(1, keepdim=True)).to(hidden.dtype)
        return (weights.unsqueeze(1) @ hidden).squeeze(1)


@register("text")
@dataclass(frozen=True)
class Text(BackboneModality):
    name: ClassVar[str] = "text"
    reads: ClassVar[str] = "titles"

    text_encoder: str
    text_pooling: Literal["auto"] | Pooling = "auto"
    title_tokens: int = 30
    lower_case: bool = True
    cache_dir: str | None = None

    @property
    def encoder(self) -> str:
        return self.text_encoder

    @property
    def pooling(self) -> Pooling:
        """What stands for a title."""
        return backbone.pooling(self.config, self.text_pooling)

    @property
    def sizes(self) -> dict[str, Any]:
        return {"text_pooling": self.pooling}

    def check_length(self, extra_tokens: int) -> None:
        backbone.check_text_length(self.config, self.title_tokens + extra_tokens)

    def tower_of(self, weights: nn.Module, embedding_dim: int) -> TextTower:
        return TextTower(weights, embedding_dim, self.pooling)

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> TextFeatures:
        for warning in check_texts(dataset.catalog):
            if world.is_main:
                warn(warning)
        folder = Path(self.cache_dir) if self.cache_dir else None
        if folder and world.is_main:
            make_folder(folder, "--cache_dir")
        # The main rank tokenises and fills the cache, the others read it.
        if world.is_main:
            made = self._tokens(dataset, folder, progress=True)
        world.patient_barrier()
        return TextFeatures(made if world.is_main else self._tokens(dataset, folder), rows, world.device)

    def _tokens(self, dataset: Dataset, folder: Path | None, progress: bool = False) -> Tokens:
        tokenizer = backbone.load_tokenizer(self.encoder)
        made = cached_tokens(dataset.catalog, tokenizer, self.title_tokens, self.lower_case, folder, progress)
        backbone.check_tokens(made.input_ids, tokenizer, self.config, self.encoder)
        return made

    def announce(self, log: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Say where titles are read, if the text encoder's folder declares it."""
        if (declared := backbone.declared_pooling(self.encoder)) is None:
            return
        which = f"{self.encoder} (modules.json) declares"
        if declared == self.pooling:
            log(f"titles      read by --text_pooling {self.pooling}, as {which}")
        elif declared in backbone.POOLINGS:
            log(f"titles      read by --text_pooling {self.pooling}, as this run's options say; {which} {declared}")
        else:
            known = f"only {', '.join(backbone.POOLINGS)} are known here"
            warn(
                f"{which} the pooling {declared}, and {known}: titles are read by --text_pooling {self.pooling}; "
                f"choose another with that flag, or another encoder"
            )
