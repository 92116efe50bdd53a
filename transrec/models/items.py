"""Item encoders: what turns an item's content, or its number, into an embedding (docs/protocol.md)."""

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.models.backbone import (
    Modality,
    Pooling,
    Preprocessing,
    has_cls,
    load_preprocessing,
    pooling,
    set_mask_ratio,
)

Content = Literal["text", "image", "multimodal", "id"]


def make_projection(width: int, embedding_dim: int) -> nn.Linear:
    """Linear(D, d), Xavier-normal, biases zero."""
    projection = nn.Linear(width, embedding_dim)
    nn.init.xavier_normal_(projection.weight)
    nn.init.zeros_(projection.bias)
    return projection


class ContentItemEncoder(nn.Module):
    """[CLS] of a backbone's last layer, or what else stands for an item there -> Linear(D, d) -> GELU.

    Attributes:
        content: what it reads.
        constants: names of the backbone's parameters that never train (MAE's positions are sines).
        backbone_dropout: whether the backbone's own dropout is active in training mode; off, the backbone stays in eval
            mode whatever mode the encoder is in, but for inserted modules that set `follows_mode`.
    """

    content: Content

    def __init__(self, backbone: nn.Module, embedding_dim: int):
        super().__init__()
        self.backbone = backbone
        self.constants = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
        self.projection = make_projection(backbone.config.hidden_size, embedding_dim)
        self.backbone_dropout = True

    @property
    def towers(self) -> "list[ContentItemEncoder]":
        """The parts that have a backbone: itself."""
        return [self]

    def train(self, mode: bool = True) -> "ContentItemEncoder":
        super().train(mode)
        if not self.backbone_dropout:
            self.backbone.eval()
            for module in self.backbone.modules():
                if getattr(module, "follows_mode", False):
                    module.train(mode)
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """The inputs of N items -> item embeddings [N, d]."""
        return F.gelu(self.projection(self.read_out(*inputs)))

    def read_out(self, *inputs: Tensor) -> Tensor:
        """The inputs of N items -> what stands for each in the backbone's output, [N, D]."""
        raise NotImplementedError

    def pool(self, hidden: Tensor, *inputs: Tensor) -> Tensor:
        """What stands for each of N items in a layer's output: [N, T, D] and the items' inputs -> [N, D]."""
        return hidden[:, 0]


class TextItemEncoder(ContentItemEncoder):
    """Of a text backbone.

    Args:
        pooling: what stands for a text: its first token, its last, or the mean of all.
    """

    content = "text"

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


class ImageItemEncoder(ContentItemEncoder):
    """Of an image backbone; where that has a LayerNorm of its own for [CLS] alone (CLIP), behind it.

    One without a [CLS] (SigLIP) is read at its own pooling head, or at the mean of all patches if it has none.

    Args:
        preprocessing: what the backbone is given.
    """

    content = "image"

    def __init__(self, backbone: nn.Module, embedding_dim: int, preprocessing: Preprocessing):
        super().__init__(backbone, embedding_dim)
        self.size = preprocessing.size
        self.has_cls = has_cls(backbone)
        paths = (path for path, _ in backbone.named_modules())
        self._cls_norm = next((path for path in paths if path.rpartition(".")[2] == "post_layernorm"), None)
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def read_out(self, pixels: Tensor) -> Tensor:
        """pixels uint8 [N, 3, S, S] of any S -> [N, D]."""
        images = pixels.float() / 255
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.encode((images - self.mean) / self.std)

    def encode(self, pixel_values: Tensor, **options: Tensor) -> Tensor:
        """Normalised images float [N, 3, size, size], and options of the backbone's own -> [N, D]."""
        if getattr(self.backbone.config, "mask_ratio", None) == 0:
            # Where MAE masks no patch it still shuffles them, which changes nothing but the order of float sums.
            patches = (self.size // self.backbone.config.patch_size) ** 2
            options["noise"] = torch.arange(patches, device=pixel_values.device).expand(len(pixel_values), -1)
        output = self.backbone(pixel_values=pixel_values, **options)
        if not self.has_cls:
            pooled = getattr(output, "pooler_output", None)
            return self.pool(output.last_hidden_state) if pooled is None else pooled
        cls = output.last_hidden_state[:, 0]
        return self.backbone.get_submodule(self._cls_norm)(cls) if self._cls_norm else cls

    def pool(self, hidden: Tensor, *inputs: Tensor) -> Tensor:
        return super().pool(hidden) if self.has_cls else hidden.mean(1)


class MultimodalItemEncoder(nn.Module):
    """Title and image of an item: Linear(2d, d) of the image's and the text's embedding (IISAN, fusion)."""

    content: Content = "multimodal"

    def __init__(self, text: TextItemEncoder, image: ImageItemEncoder):
        super().__init__()
        self.text, self.image = text, image
        width = text.projection.out_features
        self.fusion = make_projection(2 * width, width)

    @property
    def towers(self) -> list[ContentItemEncoder]:
        """The parts that have a backbone."""
        return [self.text, self.image]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixels: Tensor) -> Tensor:
        """input_ids and attention_mask int64 [N, T], pixels uint8 [N, 3, S, S] -> item embeddings [N, d]."""
        return self.fusion(torch.cat([self.image(pixels), self.text(input_ids, attention_mask)], dim=-1))


def content_item_encoder(
    content: Modality,
    backbone: nn.Module,
    name: str | Path,
    embedding_dim: int,
    mask_ratio: float = 0.0,
    text_pooling: Literal["auto"] | Pooling = "auto",
) -> TextItemEncoder | ImageItemEncoder:
    """The item encoder of the backbone in folder, or of the hub's, `name`.

    Raises TransrecError when a backbone that masks no patches is to mask some.
    """
    if content == "text":
        return TextItemEncoder(backbone, embedding_dim, pooling(backbone.config, text_pooling))
    set_mask_ratio(backbone, mask_ratio)
    return ImageItemEncoder(backbone, embedding_dim, load_preprocessing(name, backbone.config))


def joined(towers: dict[str, ContentItemEncoder]) -> ContentItemEncoder | MultimodalItemEncoder:
    """The item encoder of one tower, or of both by what they read."""
    return MultimodalItemEncoder(**towers) if len(towers) > 1 else next(iter(towers.values()))


class IdItemEncoder(nn.Module):
    """The baseline without content: one learned vector an item, Embedding(n + 1, d), row 0 padding, Xavier-normal."""

    content: Content = "id"
    towers: ClassVar[list[ContentItemEncoder]] = []

    def __init__(self, item_count: int, embedding_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(item_count + 1, embedding_dim, padding_idx=0)
        nn.init.xavier_normal_(self.embedding.weight)
        nn.init.zeros_(self.embedding.weight.data[0])

    def forward(self, items: Tensor) -> Tensor:
        """items int64 [N], numbers 1..n -> item embeddings [N, d]."""
        return self.embedding(items)
