"""Soft prompts: `prompt` (Lester et al., EMNLP 2021; docs/methods.md)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods.base import InsertOptions, Method, Place, register
from transrec.options import flag


class Prompt(nn.Module):
    """Learned vectors among a text backbone's word embeddings, put there before each forward pass.

    paper: inserted after [CLS], the mask extended over them. published: they overwrite the first positions, [CLS]
    included, and the mask stays.
    """

    def __init__(self, backbone: nn.Module, tokens: int, published: bool):
        super().__init__()
        words = backbone.get_input_embeddings().weight
        self.vectors = nn.Parameter(words[:tokens].detach().clone())
        self.published = published
        # Not a child: the word embeddings are the backbone's.
        self._words = [backbone.get_input_embeddings()]
        backbone.register_forward_pre_hook(self._put, with_kwargs=True)

    def _put(self, backbone: nn.Module, arguments: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
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


@dataclass(frozen=True)
class PromptOptions(InsertOptions):
    _minimum: ClassVar[dict[str, float]] = {"n_tokens": 1}
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {"n_tokens": (r"item_encoder\..*\.prompt\.vectors", 0)}

    insert: Literal["item"] = flag("item", "A prompt goes in front of an item's words, nowhere else.")
    adapter_lr: float = flag(1e-4, "Learning rate of what the method trains.")
    n_tokens: int = flag(30, "Learned vectors, initialised from the first word embeddings of the vocabulary.")
    variant: Literal["paper", "published"] = flag(
        "paper",
        "published: as the released programs, where the vectors overwrite the first tokens, [CLS] included, and the "
        "item is read out at the first of them.",
    )

    @property
    def extra_tokens(self) -> int:
        return self.n_tokens if self.variant == "paper" else 0


@register("prompt")
class PromptMethod(Method):
    """Learned vectors in front of the words of every item."""

    Options = PromptOptions

    def insert(self, place: Place, options: PromptOptions) -> list[nn.Parameter]:
        if place.tower != "item":
            raise TransrecError(
                f"--insert {options.insert}: a prompt goes in front of words; the user encoder reads none"
            )
        backbone = place.stack.module
        prompt = Prompt(backbone, options.n_tokens, options.variant == "published")
        backbone.prompt = prompt
        return [prompt.vectors]
