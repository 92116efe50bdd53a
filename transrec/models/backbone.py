"""One view of any transformer stack, and loading text and image backbones.

Methods attach to sites, never to classes: a stack has blocks, a block has query, key and value projections and two
sub-layers, attention and feed-forward. Sites are found by structure, so that a new layout of a known model, or a model
nobody listed, needs nothing here as long as it is built from such blocks. Our SASRec is one of them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from transrec.errors import TransrecError
from transrec.paths import resolve

Modality = Literal["text", "image"]
Pooling = Literal["cls", "last", "mean"]

PROJECTION_NAME = re.compile(r"(?:w_)?(q|k|v|query|key|value)(?:_proj|_lin|_linear)?", re.IGNORECASE)
# DeBERTa's projections of relative positions sit beside query and key and end no sub-layer.
POSITION_NAME = re.compile(r"pos_")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
MOSTLY_UNKNOWN = 0.5


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
        entry: the first module that reads the sub-layer's input (the query projection, the feed-forward up projection).
        stream: the first module that reads the residual stream: `entry` in post-LN blocks, the LayerNorm in front of it
            in pre-LN ones.
        projection: its last Linear (attention output projection, feed-forward down projection).
        output: the module whose result is added to the residual: the dropout behind `projection` where there is one.
        norm: the LayerNorm of the sum, in post-LN blocks; None in others.
    """

    entry: Site
    stream: Site
    projection: Site
    output: Site
    norm: Site | None


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
    blocks = [_view_block(block) for block in blocks_of(module)]
    return Stack(module, blocks, blocks[0].attention.projection.module.out_features)


def blocks_of(module: nn.Module) -> nn.ModuleList:
    """The transformer blocks inside `module`, whatever is in them: the list of alike modules with most parameters.

    Raises TransrecError for a module without such a list.
    """
    candidates = [
        child
        for child in module.modules()
        if isinstance(child, nn.ModuleList) and len(child) and len({type(block) for block in child}) == 1
    ]
    if not candidates:
        raise TransrecError(f"{type(module).__name__} has no list of transformer blocks")
    return max(candidates, key=_parameter_count)


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
    query = projections["q"]
    # Definition order is data-flow order: attention output first, then feed-forward from up to down projection; and of
    # a pre-LN block's own LayerNorms the first stands before attention, the last before feed-forward.
    norms = [Site(block, name) for name, child in block.named_children() if is_norm(child)]
    attention = _view_sublayer(query, norms[0] if norms else query, others[0], query.parent)
    feed_forward = _view_sublayer(others[1], norms[-1] if norms else others[1], others[-1], query.parent)
    return Block(block, query, projections["k"], projections["v"], attention, feed_forward)


def _view_sublayer(entry: Site, stream: Site, projection: Site, query_parent: nn.Module) -> Sublayer:
    # What lies beside the query projection belongs to the attention probabilities, not to the sub-layer's end.
    siblings = {} if projection.parent is query_parent else dict(projection.parent.named_children())
    dropouts = [name for name, child in siblings.items() if isinstance(child, nn.Dropout)]
    norms = [name for name, child in siblings.items() if isinstance(child, nn.LayerNorm)]
    output = Site(projection.parent, dropouts[0]) if len(dropouts) == 1 else projection
    norm = Site(projection.parent, norms[0]) if len(norms) == 1 else None
    return Sublayer(entry, entry if norm else stream, projection, output, norm)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a LayerNorm or an RMSNorm."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def layer_norms(module: nn.Module) -> list[nn.Module]:
    """Every LayerNorm (or RMSNorm) inside `module`."""
    return [m for m in module.modules() if is_norm(m)]


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


def _load(name: str | Path, what: str, load: Callable[[str], Any]) -> Any:
    """`load(place)`, with whatever goes wrong said in one line."""
    place = find_backbone(name)
    try:
        return load(place)
    except TransrecError:
        raise
    # Loading runs foreign code over foreign files: what it may raise has no end.
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if Path(place).is_dir():
            raise TransrecError(f"{place}: holds no {what} that can be loaded ({reason}); fetch it again") from error
        raise TransrecError(
            f"no {what} found for {str(name)!r}: it is no folder, none of pretrained_models/, and the hub did not "
            f"give it ({reason}); put the backbone into pretrained_models/ (see its README) or give a path"
        ) from error


def load_config(name: str | Path, modality: Modality = "text"):
    """The configuration of a backbone; of a model of text and images the part for `modality`.

    Raises TransrecError when there is none.
    """
    from transformers import AutoConfig

    config = _load(name, f"{modality} encoder", AutoConfig.from_pretrained)
    config = getattr(config, {"text": "text_config", "image": "vision_config"}[modality], config)
    # Decoders would keep the keys and values of every text for a next word that nobody asks for.
    config.use_cache = False
    return config


def pooling(config, chosen: Literal["auto"] | Pooling) -> Pooling:
    """Where a text backbone is read; "auto": encoders at [CLS], decoders, whose first token sees nothing, at the last.

    Encoders are those that transformers has a masked language model of.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if chosen != "auto":
        return chosen
    return "cls" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "last"


def load_tokenizer(name: str | Path):
    """The tokenizer of a text backbone. Raises TransrecError when there is none."""
    from transformers import AutoTokenizer

    def load(place: str):
        # Without any of these transformers makes up an empty vocabulary, in which every word is unknown.
        if Path(place).is_dir() and not any(file for p in TOKENIZER_FILES for file in Path(place).glob(p)):
            raise TransrecError(f"{place}: no tokenizer there ({', '.join(TOKENIZER_FILES)}); copy its files too")
        tokenizer = AutoTokenizer.from_pretrained(place)
        if tokenizer.pad_token is None:
            # Decoders' often have none; what stands behind a text is masked, whatever it is.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    return _load(name, "tokenizer", load)


def build_backbone(config, modality: Modality = "text") -> nn.Module:
    """A backbone of freshly drawn weights. Raises TransrecError when the model does not read `modality`."""
    from transformers import AutoModel

    return _of_modality(AutoModel.from_config(config, dtype=torch.float32), config.model_type, modality)


def load_backbone(name: str | Path, modality: Modality = "text") -> nn.Module:
    """A backbone in float32 with its pretrained weights, without the pooler (nothing reads it).

    Raises TransrecError when it cannot be found or loaded, does not read `modality`, or when its weights file lacks
    part of the model.
    """
    from transformers import AutoModel

    config = load_config(name, modality)

    def load(place: str):
        model, info = AutoModel.from_pretrained(place, config=config, dtype=torch.float32, output_loading_info=True)
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise TransrecError(
                f"{place}: the weights file lacks {len(missing)} tensors of the model, {missing[0]} for one; "
                f"it is not the backbone that config.json describes"
            )
        _mark_constants(model)
        return _of_modality(model, place, modality)

    return _load(name, f"{modality} encoder", load)


def _mark_constants(model: nn.Module) -> None:
    """Loading weights forgets which parameters the model declares constant (MAE's positions): say it again."""
    with torch.device("meta"):
        declared = dict(type(model)(model.config).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(declared[name].requires_grad)


def _of_modality(model: nn.Module, name: str, modality: Modality) -> nn.Module:
    reads = {"text": "input_ids", "image": "pixel_values"}[modality]
    if model.main_input_name != reads:
        other = {"input_ids": "text", "pixel_values": "images"}.get(model.main_input_name, model.main_input_name)
        raise TransrecError(f"{name}: a {type(model).__name__} reads {other}, not {modality}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise TransrecError(f"{name}: a {type(model).__name__} is an encoder and a decoder; give a model that is one")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def set_mask_ratio(backbone: nn.Module, ratio: float) -> None:
    """Have MAE mask that share of the patches. Raises TransrecError when another model is to mask any."""
    if hasattr(backbone.config, "mask_ratio"):
        backbone.config.mask_ratio = ratio
    elif ratio:
        raise TransrecError(f"--mask_ratio {ratio}: only MAE masks patches, this is a {type(backbone).__name__}")


@dataclass(frozen=True)
class Preprocessing:
    """What an image backbone is given: RGB images of `size` x `size`, scaled to [0, 1] and normalised by channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_image_processor(name: str | Path):
    """The image processor that lies beside an image backbone; None if there is none."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(find_backbone(name))
    except (OSError, ValueError):
        return None


def load_preprocessing(name: str | Path, config) -> Preprocessing:
    """From the backbone's preprocessor_config.json; without one, mean and std 0.5 and the size in its config.json."""
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        stored, _ = BaseImageProcessor.get_image_processor_dict(find_backbone(name))
    except OSError:
        stored = {}
    size = stored.get("crop_size" if stored.get("do_center_crop") else "size") or config.image_size
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or config.image_size
    channels = config.num_channels
    mean, std = (tuple(stored.get(key) or (0.5,) * channels) for key in ("image_mean", "image_std"))
    return Preprocessing(int(size), mean, std)


def check_text_length(config, length: int) -> None:
    """Raise TransrecError when texts of `length` tokens exceed the backbone's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from padding_idx + 1.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    if positions and length + offset > positions:
        raise TransrecError(
            f"--title_tokens: {length} tokens a text, prompts included, and the text encoder takes {positions - offset}"
        )


def check_tokens(input_ids: np.ndarray, tokenizer, config, name: str) -> None:
    """Raise TransrecError when tokenizer and model do not belong together, or the tokenizer does not know the texts."""
    if (largest := int(input_ids.max())) >= getattr(config, "vocab_size", math.inf):
        raise TransrecError(
            f"{name}: the tokenizer gives token {largest}, the model knows {config.vocab_size}; "
            f"the folder's tokenizer and weights are of different models"
        )
    words = ~np.isin(input_ids, [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id])
    unknown = (input_ids == tokenizer.unk_token_id).sum() / max(1, words.sum())
    if unknown > MOSTLY_UNKNOWN:
        raise TransrecError(
            f"{name}: {unknown:.0%} of the titles' word pieces are unknown to its tokenizer; "
            f"check its vocabulary, the titles' language and --lower_case"
        )
