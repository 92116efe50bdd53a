"""Soft prompts: `prompt` (Lester et al., EMNLP 2021; docs/methods.md)."""

from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import InsertOptions, Method, Place, register
from transrec.options import flag

# The standard deviation with which ViT draws its own [CLS] and position embeddings.
PATCH_STD = 0.02


class TextPrompt(nn.Module):
    """Inserts learned vectors among a text backbone's word embeddings before each forward pass.

    paper: the vectors follow [CLS], and the attention mask is extended to cover them. published: the vectors overwrite
    the first positions, including [CLS], and the mask is unchanged.
    """

    # Embeddings, which weight decay does not shrink.
    not_decayed = ("vectors",)
    cannot_merge = "its vectors are extra words of every text, not part of a weight of the backbone"

    def __init__(self, backbone: nn.Module, tokens: int, published: bool):
        super().__init__()
        words = backbone.get_input_embeddings().weight
        self.vectors = nn.Parameter(words[:tokens].detach().clone().float())
        self.published = published
        # In a list, so that the word embeddings are no child module: they belong to the backbone.
        self._words = [backbone.get_input_embeddings()]
        backbone.register_forward_pre_hook(self._insert_vectors, with_kwargs=True)

    def _insert_vectors(
        self, backbone: nn.Module, arguments: tuple, inputs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        inputs = dict(inputs)
        words = self._words[0](inputs.pop("input_ids"))
        mask: Tensor = inputs["attention_mask"]
        vectors = self.vectors.to(words.dtype).expand(len(words), -1, -1)
        if self.published:
            inputs["inputs_embeds"] = torch.cat([vectors, words[:, len(self.vectors) :]], dim=1)[:, : words.shape[1]]
        else:
            inputs["inputs_embeds"] = torch.cat([words[:, :1], vectors, words[:, 1:]], dim=1)
            inputs["attention_mask"] = torch.cat([mask.new_ones(vectors.shape[:2]), mask], dim=1)
        return arguments, inputs


class ImagePrompt(nn.Module):
    """Inserts learned vectors among the patches that the first block of an image backbone receives (shallow VPT).

    paper: the vectors follow [CLS] and are drawn from N(0, 0.02). published: the vectors follow the last patch and
    start at zero. They have no position embeddings.
    """

    not_decayed = ("vectors",)
    cannot_merge = "its vectors are extra patches of every image, not part of a weight of the backbone"

    def __init__(self, place: Place, tokens: int, published: bool):
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(tokens, place.stack.width))
        self.published = published
        if not published:
            nn.init.normal_(self.vectors, std=PATCH_STD)
        place.stack.blocks[0].module.register_forward_pre_hook(self._insert_vectors, with_kwargs=True)

    def _insert_vectors(
        self, block: nn.Module, arguments: tuple, inputs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        hidden = arguments[0] if arguments else inputs["hidden_states"]
        vectors = self.vectors.to(hidden.dtype).expand(len(hidden), -1, -1)
        # [CLS] comes first.
        place = hidden.shape[1] if self.published else 1
        longer = torch.cat([hidden[:, :place], vectors, hidden[:, place:]], dim=1)
        return ((longer, *arguments[1:]), inputs) if arguments else (arguments, inputs | {"hidden_states": longer})


@dataclass(frozen=True)
class PromptOptions(InsertOptions):
    _minimum: ClassVar[dict[str, float]] = {"n_tokens": 1}
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {"n_tokens": (r"item_encoder\..*\.prompt\.vectors", 0)}

    insert: Literal["item"] = flag("item", "Where the prompt is inserted: in front of an item's words or patches.")
    adapter_lr: float = flag(1e-4, "Learning rate of the parameters that the method trains.")
    n_tokens: int = flag(
        30, "Number of learned vectors; those of texts start as the first word embeddings of the vocabulary."
    )
    variant: Literal["paper", "published"] = flag(
        "paper",
        "published: as in the released programs. In texts the vectors overwrite the first tokens, including [CLS], and "
        "the item is read at the first vector; in images they follow the last patch, and the projection trains too.",
    )

    @property
    def extra_tokens(self) -> int:
        return self.n_tokens if self.variant == "paper" else 0


@register("prompt")
class PromptMethod(Method):
    """Inserts learned vectors in front of the words or patches of every item."""

    Options = PromptOptions
    tokenwise = True
    changes_at_insertion = "texts grow by words, images by patches"

    def insert(self, place: Place, options: PromptOptions) -> list[nn.Parameter]:
        if place.tower != "item":
            raise TransrecError(
                f"--insert {options.insert}: a prompt goes in front of words or patches; the user encoder reads none"
            )
        backbone, published = place.stack.module, options.variant == "published"
        if place.modality == "text" and "inputs_embeds" not in signature(backbone.forward).parameters:
            raise TransrecError(
                f"{type(backbone).__name__} reads only words of its vocabulary, not the vectors of --method prompt; "
                f"use another method or text encoder"
            )
        if place.modality != "text" and any("relative_position" in name for name, _ in backbone.named_modules()):
            raise TransrecError(
                f"{type(backbone).__name__} has a bias for each pair of patches, but none for the vectors of --method "
                f"prompt; use another method or image encoder"
            )
        if place.modality == "text":
            prompt: nn.Module = TextPrompt(backbone, options.n_tokens, published)
        else:
            prompt = ImagePrompt(place, options.n_tokens, published)
        backbone.prompt = prompt
        trains_projection = published and place.modality == "image"
        return [prompt.vectors, *(place.projection.parameters() if trains_projection else ())]
