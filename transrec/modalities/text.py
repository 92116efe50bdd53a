"""Titles or other texts of items, read by a text backbone (`text`)."""

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

# Default number of word pieces of an attribute other than the title (as in Adapter4Rec's programs).
ATTRIBUTE_TOKENS = 50
# A text has a token that begins it, a token that ends it, and at least one word in between.
FEWEST_TOKENS = 3
SEVERAL_TEXTS = "several --text_attributes"


class TextTower(BackboneTower):
    """Runs a text backbone. Its last state is the backbone's output, which in decoders follows the final norm.

    If an item has several texts (Adapter4Rec's news attributes), each text is encoded separately and the embeddings
    are averaged; no state of a layer then represents the item.

    Args:
        pooling: how a text is pooled: its first token, its last, or the mean of all.
        texts: A, the number of texts per item.
    """

    modality = "text"
    ends_in_output = True
    stateless_noun = SEVERAL_TEXTS

    def __init__(self, backbone: nn.Module, embedding_dim: int, pooling: Pooling = "cls", texts: int = 1):
        super().__init__(backbone, embedding_dim)
        self.pooling, self.input_count = pooling, 2 * texts
        if texts > 1:
            self.states = []

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return item embeddings [N, d] for the input_ids and attention_mask, int64 [N, T], of each of A texts."""
        if len(inputs) < 4:
            return super().forward(*inputs)
        texts = zip(inputs[::2], inputs[1::2], strict=True)
        return torch.stack([BackboneTower.forward(self, *text) for text in texts]).mean(0)

    @property
    def example(self) -> tuple[Tensor, ...] | None:
        ids = torch.tensor([[0, 1, 2], [2, 1, 0]])
        return (ids, torch.tensor([[1, 1, 1], [1, 1, 0]])) if self.pooling == "cls" else None

    def read_out(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return text vectors [N, D] for input_ids int64 [N, T] and attention_mask int64 [N, T] (1 = token)."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.pool(hidden, input_ids, attention_mask)

    def pool(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return super().pool(hidden)
        # Soft prompts lengthen a text at its front.
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
        "Text backbone: a folder, a name in pretrained_models/, or a hub name.",
        absolute=find_backbone,
    )
    text_pooling: Literal["auto", "cls", "last", "mean"] = flag(
        "auto",
        "How the text encoder's output is pooled into one vector of a title: its first token (cls), its last (last), "
        "or the mean of all (mean); auto: as a sentence-transformers folder declares, else cls for encoders and last "
        "for decoders (LLMs).",
    )
    text_template: str | None = flag(
        None,
        "Template of an item's text from columns of the items file, such as '{title}. {brand}' (default: its title).",
    )
    text_attributes: list[str] = flag(
        [TITLE], "Columns of the items file that are encoded separately, such as title abstract; an item is their mean."
    )
    title_tokens: int = flag(
        30, "Cut titles, or texts of --text_template, to this many word pieces, including special tokens."
    )
    attribute_tokens: list[int] = flag(
        [],
        "Word pieces that each of --text_attributes is cut to (default: --title_tokens for title, 50 for any other).",
    )
    lower_case: bool = flag(True, "Lower-case titles before they are tokenised.")
    cache_dir: str | None = flag(
        None,
        "Folder for tokenised titles (default: .transrec/ next to the items file).",
        absolute=resolve,
        affects_results=False,
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

    def declared_flags(self) -> dict[str, Any]:
        """Return the pooling that a sentence-transformers folder declares, if --text_pooling is auto."""
        pooling = backbone.declared_pooling(self.text_encoder) if self.text_pooling == "auto" else None
        return {"text_pooling": pooling} if pooling in backbone.POOLINGS else {}

    @property
    def texts(self) -> dict[str, int]:
        """The texts that are read of an item, each a column's name or a template, with their lengths in word pieces."""
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
        """The texts that the options name, with their lengths in word pieces."""
        return self.options.texts

    @property
    def pooling(self) -> Pooling:
        """The pooling of a title into one vector."""
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

    def backbone_tower(self, weights: nn.Module, embedding_dim: int) -> TextTower:
        return TextTower(weights, embedding_dim, self.pooling, len(self.texts))

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> TextFeatures | AttributeFeatures:
        parts = [
            self._text_features(dataset.catalog.with_text(text), length, rows, world)
            for text, length in self.texts.items()
        ]
        return AttributeFeatures(parts) if len(parts) > 1 else parts[0]

    def _text_features(self, catalog: Catalog, length: int, rows: np.ndarray, world: World) -> TextFeatures:
        for warning in check_texts(catalog, is_only_text=len(self.texts) == 1):
            if world.is_main:
                warn(warning)
        cache_dir = self.options.cache_dir
        folder = Path(cache_dir) if cache_dir else None
        if folder and world.is_main:
            make_folder(folder, "--cache_dir")
        # The main rank tokenises and fills the cache; the other ranks read it.
        if world.is_main:
            tokenised = self._tokens(catalog, length, folder, progress=True)
        world.patient_barrier()
        tokens = tokenised if world.is_main else self._tokens(catalog, length, folder)
        return TextFeatures(tokens, rows, world.device, self.config.hidden_size)

    def _tokens(self, catalog: Catalog, length: int, folder: Path | None, progress: bool = False) -> Tokens:
        tokenizer = backbone.load_tokenizer(self.encoder)
        tokens = cached_tokens(catalog, tokenizer, length, self.options.lower_case, folder, progress)
        backbone.check_tokens(tokens.input_ids, tokens.lengths, tokenizer, self.config, self.encoder)
        return tokens

    def announce(self, log: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Log the texts, unless only titles are read, and the pooling, if the text encoder's folder declares one."""
        if list(self.texts) != [TITLE]:
            log("texts       " + ", ".join(f"{text} ({length} word pieces)" for text, length in self.texts.items()))
        if (declared := backbone.declared_pooling(self.encoder)) is None:
            return
        declares = f"{self.encoder} (modules.json) declares"
        if declared == self.pooling:
            log(f"titles      read by --text_pooling {self.pooling}, as {declares}")
        elif declared in backbone.POOLINGS:
            log(f"titles      read by --text_pooling {self.pooling}, as this run's options say; {declares} {declared}")
        else:
            known = f"only {', '.join(backbone.POOLINGS)} are known here"
            warn(
                f"{declares} the pooling {declared}, and {known}: titles are read by --text_pooling {self.pooling}; "
                f"choose another with that flag, or another encoder"
            )
