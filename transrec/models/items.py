"""Item encoders: what turns an item's content, or its number, into an embedding (docs/protocol.md)."""

from torch import Tensor, nn
from torch.nn import functional as F


class TextItemEncoder(nn.Module):
    """[CLS] of a text backbone's last layer -> Linear(D, d) -> GELU.

    `backbone_dropout` says whether the backbone's own dropout is active in training mode; off, the backbone stays in
    eval mode whatever mode the encoder is in, but for inserted modules that set `follows_mode`.
    """

    def __init__(self, backbone: nn.Module, embedding_dim: int):
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(backbone.config.hidden_size, embedding_dim)
        self.backbone_dropout = True
        nn.init.xavier_normal_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def train(self, mode: bool = True) -> "TextItemEncoder":
        super().train(mode)
        if not self.backbone_dropout:
            self.backbone.eval()
            for module in self.backbone.modules():
                if getattr(module, "follows_mode", False):
                    module.train(mode)
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids int64 [N, T], attention_mask int64 [N, T] (1 = token) -> item embeddings [N, d]."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return F.gelu(self.projection(hidden[:, 0]))


class IdItemEncoder(nn.Module):
    """The baseline without content: one learned vector an item, Embedding(n + 1, d), row 0 padding, Xavier-normal."""

    backbone = None

    def __init__(self, item_count: int, embedding_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(item_count + 1, embedding_dim, padding_idx=0)
        nn.init.xavier_normal_(self.embedding.weight)
        nn.init.zeros_(self.embedding.weight.data[0])

    def forward(self, items: Tensor) -> Tensor:
        """items int64 [N], numbers 1..n -> item embeddings [N, d]."""
        return self.embedding(items)
