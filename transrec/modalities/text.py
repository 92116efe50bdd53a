"""Titles, or other texts of an item, read by a text backbone (`text`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.data.catalog import TITLE, Catalog, Tokens, cached_tokens, check_texts
from transrec.data.dataset import Dataset
from transrec.data.features import AttributeFeatures, TextFeatures
from transrec.errors import TransrecError, warn
from transrec.modalities.base import BackboneModality, register
from transrec.models import backbone
from transrec.models.backbone import Pooling
from transrec.models.towers import BackboneTower
from transrec.paths import make_folder
from transrec.training.distributed import World

# Word pieces of an attribute other than the title (Adapter4Rec's programs).
ATTRIBUTE_TOKENS = 50
SEVERAL_TEXTS = "several --text_attributes"


class TextTower(BackboneTower):
    """Runs a text backbone. Its last state is what that gives out, in decoders behind their last norm.

    Of several texts of an item (Adapter4Rec's news attributes) each is encoded for itself, and the embeddings are
    averaged; no state of a layer then stands for the item.

    Args:
        pooling: what stands for a text: its first token, its last, or the mean of all.
        texts: A, the number of texts of an item.
    """

    modality = "text"
    ends_in_output = True
    stateless = SEVERAL_TEXTS

    def __init__(self, backbone: nn.Module, embedding_dim: int, pooling: Pooling = "cls", texts: int = 1):
        super().__init__(backbone, embedding_dim)
        self.pooling, self.input_count = pooling, 2 * texts
        if texts > 1:
            self.states = []

    def forward(self, *inputs: Tensor) -> Tensor:
        """input_ids and attention_mask, int64 [N, T], of each of A texts -> item embeddings [N, d]."""
        if len(inputs) == 2:
            return super().forward(*inputs)
        texts = zip(inputs[::2], inputs[1::2], strict=True)
        return torch.stack([BackboneTower.forward(self, *text) for text in texts]).mean(0)

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
    text_template: str | None = None
    text_attributes: Sequence[str] = (TITLE,)
    attribute_tokens: Sequence[int] = ()
    title_tokens: int = 30
    lower_case: bool = True
    cache_dir: str | None = None

    @property
    def encoder(self) -> str:
        return self.text_encoder

    @property
    def texts(self) -> dict[str, int]:
        """What is read of an item's columns, each a column's name or a template, and how many word pieces of it."""
        if self.text_template is not None:
            return {self.text_template: self.title_tokens}
        usual = [self.title_tokens if name == TITLE else ATTRIBUTE_TOKENS for name in self.text_attributes]
        return dict(zip(self.text_attributes, self.attribute_tokens or usual, strict=True))

    @property
    def pooling(self) -> Pooling:
        """What stands for a title."""
        return backbone.pooling(self.config, self.text_pooling)

    @property
    def sizes(self) -> dict[str, Any]:
        return {"text_pooling": self.pooling}

    def check_length(self, extra_tokens: int) -> None:
        longest, length = max(self.texts.items(), key=lambda text: text[1])
        of_titles = longest in (TITLE, self.text_template) and not self.attribute_tokens
        flag = "--title_tokens" if of_titles else "--attribute_tokens"
        backbone.check_text_length(self.config, length + extra_tokens, flag)

    def check_states(self) -> None:
        if len(self.texts) > 1:
            raise TransrecError(f"--cached yes: {SEVERAL_TEXTS} have no hidden states; join them by --text_template")

    def tower_of(self, weights: nn.Module, embedding_dim: int) -> TextTower:
        return TextTower(weights, embedding_dim, self.pooling, len(self.texts))

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> TextFeatures | AttributeFeatures:
        parts = [
            self._features_of(dataset.catalog.reading(text), length, rows, world) for text, length in self.texts.items()
        ]
        return AttributeFeatures(parts) if len(parts) > 1 else parts[0]

    def _features_of(self, catalog: Catalog, length: int, rows: np.ndarray, world: World) -> TextFeatures:
        for warning in check_texts(catalog, alone=len(self.texts) == 1):
            if world.is_main:
                warn(warning)
        folder = Path(self.cache_dir) if self.cache_dir else None
        if folder and world.is_main:
            make_folder(folder, "--cache_dir")
        # The main rank tokenises and fills the cache, the others read it.
        if world.is_main:
            made = self._tokens(catalog, length, folder, progress=True)
        world.patient_barrier()
        return TextFeatures(made if world.is_main else self._tokens(catalog, length, folder), rows, world.device)

    def _tokens(self, catalog: Catalog, length: int, folder: Path | None, progress: bool = False) -> Tokens:
        tokenizer = backbone.load_tokenizer(self.encoder)
        made = cached_tokens(catalog, tokenizer, length, self.lower_case, folder, progress)
        backbone.check_tokens(made.input_ids, tokenizer, self.config, self.encoder)
        return made

    def announce(self, log: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Say which texts are read, if not titles alone, and where, if the text encoder's folder declares it."""
        if list(self.texts) != [TITLE]:
            log("texts       " + ", ".join(f"{text} ({length} word pieces)" for text, length in self.texts.items()))
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
