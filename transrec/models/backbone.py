"""One view of any transformer stack, and loading text backbones.

Methods attach to sites, never to classes: a stack has blocks, a block has query, key and value projections and two
sub-layers, attention and feed-forward. Sites are found by structure, so that a new layout of a known model, or a model
nobody listed, needs nothing here as long as it is built from such blocks. Our SASRec is one of them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from transrec.errors import TransrecError
from transrec.paths import resolve

PROJECTION_NAME = re.compile(r"(?:w_)?(q|k|v|query|key|value)(?:_proj|_lin|_linear)?", re.IGNORECASE)
# DeBERTa's projections of relative positions sit beside query and key and end no sub-layer.
POSITION_NAME = re.compile(r"pos_")


@dataclass(frozen=True)
class Site:
    """A child module that may be wrapped or replaced in its parent."""

    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        return getattr(self.parent, self.name)

    def replace(self, module: nn.Module) -> None:
        setattr(self.parent, self.name, module)


@dataclass(frozen=True)
class Sublayer:
    """Attention or feed-forward.

    Attributes:
        projection: its last Linear (attention output projection, feed-forward down projection).
        output: the module whose result is added to the residual: the dropout behind `projection` where there is one.
    """

    projection: Site
    output: Site


@dataclass(frozen=True)
class Block:
    """One transformer block and its sites."""

    module: nn.Module
    query: Site
    key: Site
    value: Site
    attention: Sublayer
    feed_forward: Sublayer

    @property
    def sublayers(self) -> tuple[Sublayer, Sublayer]:
        return self.attention, self.feed_forward


@dataclass(frozen=True)
class Stack:
    """A whole transformer: its blocks from first to last and its width D."""

    module: nn.Module
    blocks: list[Block]
    width: int


def view(module: nn.Module) -> Stack:
    """The stack inside `module`: the list of alike blocks that holds the most parameters.

    Raises TransrecError for a module without such a list, or whose blocks lack a site.
    """
    candidates = [
        child
        for child in module.modules()
        if isinstance(child, nn.ModuleList) and len(child) and len({type(block) for block in child}) == 1
    ]
    if not candidates:
        raise TransrecError(f"{type(module).__name__} has no list of transformer blocks to place adapters in")
    blocks = [_view_block(block) for block in max(candidates, key=_parameter_count)]
    return Stack(module, blocks, blocks[0].attention.projection.module.out_features)


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _view_block(block: nn.Module) -> Block:
    projections: dict[str, Site] = {}
    others: list[Site] = []
    for path, child in block.named_modules():
        if not isinstance(child, nn.Linear):
            continue
        parent, _, name = path.rpartition(".")
        site = Site(block.get_submodule(parent), name)
        if match := PROJECTION_NAME.fullmatch(name):
            projections.setdefault(match[1][0].lower(), site)
        elif not POSITION_NAME.match(name):
            others.append(site)
    if len(projections) != 3 or len(others) < 3:
        raise TransrecError(
            f"{type(block).__name__}: found the projections {sorted(projections)} and {len(others)} other linear "
            f"layers; a block needs query, key and value and at least an attention output and two feed-forward layers"
        )
    query_parent = projections["q"].parent
    # Definition order is data-flow order: attention output first, feed-forward down projection last.
    attention, feed_forward = (_view_sublayer(site, query_parent) for site in (others[0], others[-1]))
    return Block(block, projections["q"], projections["k"], projections["v"], attention, feed_forward)


def _view_sublayer(projection: Site, query_parent: nn.Module) -> Sublayer:
    dropouts = [name for name, child in projection.parent.named_children() if isinstance(child, nn.Dropout)]
    # A dropout beside the query projection acts on attention probabilities, not on the sub-layer's output.
    if len(dropouts) == 1 and projection.parent is not query_parent:
        return Sublayer(projection, Site(projection.parent, dropouts[0]))
    return Sublayer(projection, projection)


def layer_norms(module: nn.Module) -> list[nn.Module]:
    """Every LayerNorm (or RMSNorm) inside `module`."""
    return [m for m in module.modules() if isinstance(m, nn.LayerNorm) or type(m).__name__.endswith("RMSNorm")]


def find_backbone(name: str | Path) -> str:
    """Where a backbone is: an existing folder, a folder of `pretrained_models/`, else `name` itself (a hub name).

    Raises TransrecError for a folder without config.json.
    """
    for candidate in (resolve(name), resolve(Path("pretrained_models") / name)):
        if candidate.is_dir():
            if not (candidate / "config.json").exists():
                raise TransrecError(f"{candidate}: no config.json there; a backbone is a folder in Hugging Face format")
            return str(candidate)
    return str(name)


def _missing_backbone(name: str | Path, what: str, error: Exception) -> TransrecError:
    return TransrecError(
        f"no {what} found for {str(name)!r}: it is not a folder, pretrained_models/{name} is not one either, and the "
        f"hub did not give it ({str(error).splitlines()[0][:200]}); put the backbone into pretrained_models/ "
        f"(see its README) or give a path"
    )


def load_config(name: str | Path):
    """The configuration of a backbone. Raises TransrecError when there is none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(find_backbone(name))
    except (OSError, ValueError) as error:
        raise _missing_backbone(name, "text encoder", error) from error


def load_tokenizer(name: str | Path):
    """The tokenizer of a text backbone. Raises TransrecError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(find_backbone(name))
    except (OSError, ValueError) as error:
        raise _missing_backbone(name, "tokenizer", error) from error


def build_backbone(config) -> nn.Module:
    """A text backbone of freshly drawn weights."""
    from transformers import AutoModel

    return _without_pooler(AutoModel.from_config(config, dtype=torch.float32))


def load_backbone(name: str | Path) -> nn.Module:
    """A text backbone in float32 with its pretrained weights, without the pooler (nothing reads it).

    Raises TransrecError when it cannot be found, or when its weights file lacks part of the model.
    """
    from transformers import AutoModel

    place = find_backbone(name)
    try:
        model, info = AutoModel.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise _missing_backbone(name, "text encoder", error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise TransrecError(f"{place}: its weights file is damaged ({error}); fetch it again") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise TransrecError(
            f"{place}: the weights file lacks {len(missing)} tensors of the model, {missing[0]} for one; "
            f"it is not the backbone that config.json describes"
        )
    return _without_pooler(model)


def _without_pooler(model: nn.Module) -> nn.Module:
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def check_text_length(config, length: int) -> None:
    """Raise TransrecError when texts of `length` tokens exceed the backbone's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from padding_idx + 1.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    if positions and length + offset > positions:
        raise TransrecError(f"--title_tokens {length}: the text encoder takes at most {positions - offset}")
