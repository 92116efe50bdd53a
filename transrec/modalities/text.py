"""Titles, or other texts of an item, read by a text backbone (`text`)."""

from collections.abc import Callable
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
from transrec.data.template import is_template, read_template
from transrec.errors import TransrecError, warn
from transrec.modalities.base import BackboneModality, ModalityOptions, register
from transrec.models import backbone
from transrec.models.backbone import Pooling, find_backbone
from transrec.models.towers import BackboneTower
from transrec.options import flag
from transrec.paths import make_folder, resolve
from transrec.training.distributed import World

# Word pieces of an attribute other than the title (Adapter4Rec's programs).
ATTRIBUTE_TOKENS = 50
# Of a text: what begins it, what ends it, and a word between.
FEWEST_TOKENS = 3
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
        if len(inputs) < 4:
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


@dataclass(frozen=True)
class TextOptions(ModalityOptions):
    _minimum: ClassVar[dict[str, float]] = {"title_tokens": FEWEST_TOKENS}

    text_encoder: str = flag(
        "bert-base-uncased",
        "Text backbone: folder, name in pretrained_models/, or hub name.",
        absolute=find_backbone,
    )
    text_pooling: Literal["auto", "cls", "last", "mean"] = flag(
        "auto",
        "What stands for a title in the text encoder: its first token, its last, or the mean of all; auto: what a "
        "sentence-transformers folder declares, else cls for encoders, last for decoders (LLMs).",
    )
    text_template: str | None = flag(
        None, "Text of an item made of columns of the items file, as '{title}. {brand}' (default: its title)."
    )
    text_attributes: list[str] = flag(
        [TITLE], "Columns of the items file that are encoded one by one, as title abstract; an item is their mean."
    )
    title_tokens: int = flag(
        30, "Titles, or what --text_template makes, are cut to this many word pieces, special tokens included."
    )
    attribute_tokens: list[int] = flag(
        [], "Word pieces that each of --text_attributes is cut to (default: --title_tokens of title, 50 of any other)."
    )
    lower_case: bool = flag(True, "Lower-case titles before they are tokenised.")
    cache_dir: str | None = flag(
        None,
        "Folder for tokenised titles (default: .transrec/ beside the items file).",
        absolute=resolve,
        decides=False,
    )

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "text_attributes", [name.lower() for name in self.text_attributes])
        attributes, lengths = self.text_attributes, self.attribute_tokens
        flag = f"--text_attributes {' '.join(attributes)}"
        if not attributes or len(set(attributes)) < len(attributes):
            raise TransrecError(f"{flag}: give the name of at least one column, and none twice")
        if named := [name for name in attributes if is_template(name)]:
            raise TransrecError(f"{flag}: {named[0]!r} is a template, not a column; give it by --text_template")
        if lengths and len(lengths) != len(attributes):
            raise TransrecError(
                f"--attribute_tokens {' '.join(map(str, lengths))}: give as many numbers as there are columns in {flag}"
            )
        if min(lengths, default=FEWEST_TOKENS) < FEWEST_TOKENS:
            raise TransrecError(f"--attribute_tokens {min(lengths)}: must be at least {FEWEST_TOKENS}")
        if self.text_template is not None:
            read_template(self.text_template)
            if lengths or attributes != [TITLE]:
                raise TransrecError(
                    f"--text_template {self.text_template!r} and --text_attributes or --attribute_tokens: give one; a "
                    f"template is one text, of --title_tokens"
                )

    def declared(self) -> dict[str, Any]:
        """The pooling that a folder of sentence-transformers declares, where --text_pooling is auto."""
        pooling = backbone.declared_pooling(self.text_encoder) if self.text_pooling == "auto" else None
        return {"text_pooling": pooling} if pooling in backbone.POOLINGS else {}

    @property
    def texts(self) -> dict[str, int]:
        """What is read of an item's columns, each a column's name or a template, and how many word pieces of it."""
        if self.text_template is not None:
            return {self.text_template: self.title_tokens}
        usual = [self.title_tokens if name == TITLE else ATTRIBUTE_TOKENS for name in self.text_attributes]
        return dict(zip(self.text_attributes, self.attribute_tokens or usual, strict=True))


@register("text")
class Text(BackboneModality):
    name: ClassVar[str] = "text"
    reads: ClassVar[str] = "titles"
    Options = TextOptions
    options: TextOptions

    @property
    def encoder(self) -> str:
        return self.options.text_encoder

    @property
    def texts(self) -> dict[str, int]:
        """As its options have them."""
        return self.options.texts

    @property
    def pooling(self) -> Pooling:
        """What stands for a title."""
        return backbone.pooling(self.config, self.options.text_pooling)

    @property
    def sizes(self) -> dict[str, Any]:
        return {"text_pooling": self.pooling}

    def check_length(self, extra_tokens: int) -> None:
        longest, length = max(self.texts.items(), key=lambda text: text[1])
        of_titles = longest in (TITLE, self.options.text_template) and not self.options.attribute_tokens
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
        given = self.options.cache_dir
        folder = Path(given) if given else None
        if folder and world.is_main:
            make_folder(folder, "--cache_dir")
        # The main rank tokenises and fills the cache, the others read it.
        if world.is_main:
            made = self._tokens(catalog, length, folder, progress=True)
        world.patient_barrier()
        tokens = made if world.is_main else self._tokens(catalog, length, folder)
        return TextFeatures(tokens, rows, world.device, self.config.hidden_size)

    def _tokens(self, catalog: Catalog, length: int, folder: Path | None, progress: bool = False) -> Tokens:
        tokenizer = backbone.load_tokenizer(self.encoder)
        made = cached_tokens(catalog, tokenizer, length, self.options.lower_case, folder, progress)
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
