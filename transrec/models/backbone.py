"""A uniform view of any transformer stack, and loading of text and image backbones.

Methods attach to sites, never to model classes: a stack has blocks; a block has query, key and value projections and
two sub-layers, attention and feed-forward. Sites are found by structure, so a new layout of a known model, or an
unknown model, needs no change here as long as it is built from such blocks. Our SASRec is such a model.
"""

import errno
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from transrec.errors import TransrecError, file_error, is_memory_shortage, os_error
from transrec.finite import first_not_finite, is_finite
from transrec.models.quantised import quantisation, return_float32
from transrec.paths import resolve, write_text
from transrec.untrusted import check_model_folder, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The key of a modality's part in a multimodal model's configuration, if it is not MODALITY_config.
PARTS = {"image": "vision_config"}
MAIN_INPUTS = {"text": "input_ids", "image": "pixel_values"}

Pooling = Literal["cls", "last", "mean"]
POOLINGS = get_args(Pooling)

PROJECTION_NAME = re.compile(r"(?:w_)?(q|k|v|query|key|value)(?:_proj|_lin|_linear)?", re.IGNORECASE)
# Linear layers that do not end a sub-layer: DeBERTa's projections of relative positions, the gates of gated residual
# sums, and Longformer's further projections, for tokens that all others see.
BESIDE_SUBLAYERS = re.compile(r"pos_.*|residual_gate|.*_global")
# DistilBERT's LayerNorms are direct children of the block, as in pre-LN blocks, but follow a sub-layer.
NORM_BEHIND = re.compile(r"(?:sa|output)_layer_norm")
# Pooling modes of sentence-transformers: older releases write a key for each mode, newer ones a key with their names.
POOLING_KEY = re.compile(r"pooling_mode_(cls|max|mean|mean_sqrt_len|weightedmean|last)_?token(?:s)?")
CLS_NAME = re.compile(r"cls_token|class_token|class_embedding")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
MOSTLY_UNKNOWN = 0.5
LARGEST_IMAGE = 4096
OFFSET_POSITIONS = re.compile(r"roberta|camembert|mpnet")
# Several times as many as the deepest existing models have.
MOST_LAYERS = 1000


@dataclass(frozen=True)
class Site:
    """A child module that can be wrapped or replaced in its parent."""

    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        return getattr(self.parent, self.name)

    def replace(self, module: nn.Module) -> None:
        setattr(self.parent, self.name, module)


@dataclass(frozen=True)
class Sublayer:
    """An attention or feed-forward sub-layer.

    Attributes:
        entry: the first module that reads the sub-layer's input (the query projection, the feed-forward up projection).
        stream: the first module that reads the residual stream: `entry` in post-LN blocks, the LayerNorm in front of
            `entry` in pre-LN blocks.
        projection: the last Linear (the attention output projection, the feed-forward down projection).
        output: the module whose output is added to the residual: the dropout after `projection` if there is one, else
            `projection`.
        norm: the LayerNorm after the residual addition in post-LN blocks; None in other blocks.
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
    """A complete transformer: its blocks from first to last, and its width D."""

    module: nn.Module
    blocks: list[Block]
    width: int

    @property
    def is_shared(self) -> bool:
        """True if several layers share a block (ALBERT); modules inserted into that block are shared too."""
        config = getattr(self.module, "config", None)
        return config is not None and config.num_hidden_layers != len(self.blocks)


def view(module: nn.Module) -> Stack:
    """Return the stack inside `module`: the list of blocks of one class that holds the most parameters.

    Raises TransrecError for a module without such a list, or if a block lacks a site.
    """
    blocks = [_view_block(block) for block in blocks_of(module)]
    return Stack(module, blocks, cast(nn.Linear, blocks[0].attention.projection.module).out_features)


def blocks_of(module: nn.Module) -> nn.ModuleList:
    """Return the transformer blocks inside `module`: the list of modules of one class with the most parameters.

    The contents of the blocks do not matter.

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


def recompute_blocks(module: nn.Module) -> None:
    """Turn on activation checkpointing: keep only each block's input, and recompute the rest in the backward pass.

    Values and gradients stay the same, including dropout, in training and in eval mode.

    Raises TransrecError as `blocks_of` does.
    """
    for block in blocks_of(module):
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    return checkpoint(forward, *arguments, use_reentrant=False, **options)


def skip_unread_tokens(module: nn.Module) -> list[RemovableHandle]:
    """Make the last block compute only the first token, once its attention has read all of them.

    The output is unchanged at the first token, and must not be read at others: the residual sums add the first token's
    update to all of them.

    Returns handles whose `remove` undoes it; none if the layers share a block, which is then not only the last.

    Raises TransrecError as `view` does.
    """
    stack = view(module)
    if stack.is_shared:
        return []
    attention, feed_forward = stack.blocks[-1].sublayers
    # In some models, attention and feed-forward layers read the output of the same LayerNorm.
    shares_norm = feed_forward.stream.module is attention.stream.module
    sites = attention.projection, feed_forward.entry if shares_norm else feed_forward.stream
    return [site.module.register_forward_pre_hook(_first_token) for site in sites]


def _first_token(module: nn.Module, arguments: tuple) -> tuple:
    return arguments[0][:, :1], *arguments[1:]


def _parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _view_block(block: nn.Module) -> Block:
    projections: dict[str, Site] = {}
    others: list[Site] = []
    several = False
    for path, child in block.named_modules():
        if not isinstance(child, nn.Linear):
            continue
        parent, _, name = path.rpartition(".")
        site = Site(block.get_submodule(parent), name)
        if match := PROJECTION_NAME.fullmatch(name):
            several |= projections.setdefault(match[1][0].lower(), site) is not site
        elif not BESIDE_SUBLAYERS.fullmatch(name):
            others.append(site)
    if len(projections) != 3 or len(others) < 3 or several:
        names = f"{'several times ' if several else ''}{sorted(projections)}"
        raise TransrecError(
            f"{type(block).__name__}: found the projections {names} and {len(others)} other linear layers; to insert "
            f"anything, a block needs query, key and value once each and at least an attention output and two "
            f"feed-forward layers; use --method full, frozen or iisan, or a backbone of pretrained_models/README.md"
        )
    query = projections["q"]
    widths = {cast(nn.Linear, ends.module).out_features for ends in (others[0], others[-1])}
    if len(widths) > 1:
        raise TransrecError(
            f"{type(block).__name__}: its attention and feed-forward layers seem to end in widths of "
            f"{' and '.join(map(str, sorted(widths)))}, so nothing can be inserted; use --method full, frozen or "
            f"iisan, or a backbone of pretrained_models/README.md"
        )
    # Modules are defined in the order of data flow: the attention output first, then the feed-forward layers from up to
    # down projection. Of a block's own LayerNorms, the first is attention's and the last the feed-forward sub-layer's.
    norms = [Site(block, name) for name, child in block.named_children() if is_norm(child)]
    of_attention, of_feed_forward = (norms[0], norms[-1]) if norms else (None, None)
    attention = _view_sublayer(query, of_attention, others[0], query)
    feed_forward = _view_sublayer(others[1], of_feed_forward, others[-1], query)
    return Block(block, query, projections["k"], projections["v"], attention, feed_forward)


def _view_sublayer(entry: Site, own_norm: Site | None, projection: Site, query: Site) -> Sublayer:
    # Siblings of the query projection belong to the attention probabilities, not to the end of the sub-layer.
    siblings = {} if projection.parent is query.parent else dict(projection.parent.named_children())
    dropouts = [name for name, child in siblings.items() if isinstance(child, nn.Dropout)]
    norms = [name for name, child in siblings.items() if isinstance(child, nn.LayerNorm)]
    # A dropout next to the attention module belongs to neither sub-layer (ALBERT's is never called).
    if query.module in projection.parent.modules():
        dropouts = []
    output = Site(projection.parent, dropouts[0]) if len(dropouts) == 1 else projection
    if own_norm and NORM_BEHIND.fullmatch(own_norm.name):
        norm = own_norm
    else:
        norm = Site(projection.parent, norms[0]) if len(norms) == 1 else None
    return Sublayer(entry, entry if norm else own_norm or entry, projection, output, norm)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a LayerNorm or an RMSNorm."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def layer_norms(module: nn.Module) -> list[nn.Module]:
    """Return every LayerNorm or RMSNorm inside `module`."""
    return [m for m in module.modules() if is_norm(m)]


def find_backbone(name: str | Path) -> str:
    """Return where a backbone is: an existing folder, a folder in `pretrained_models/`, else `name` (a hub name).

    Raises TransrecError for a folder without config.json.
    """
    for candidate in (resolve(name), resolve(Path("pretrained_models") / name)):
        if candidate.is_dir():
            if not (candidate / "config.json").exists():
                raise TransrecError(f"{candidate}: no config.json there; a backbone is a folder in Hugging Face format")
            return str(candidate)
    return str(name)


def _load(name: str | Path, what: str, load: Callable[[str], Any]) -> Any:
    """Return `load(place)`; errors become a one-line TransrecError, except memory shortage."""
    place = find_backbone(name)
    try:
        if Path(place).is_dir():
            check_model_folder(Path(place))
        with _quietly():
            return load(place)
    except TransrecError:
        raise
    # Loading runs third-party code on third-party files, so it may raise anything.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise _custom_code_error(name, place) from error
        if is_memory_shortage(error):
            raise
        cause = os_error(error)
        if cause and cause.errno not in (None, errno.ENOENT) and Path(place).is_dir():
            raise file_error(cause, cause.filename or place, what="cannot be read") from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if Path(place).is_dir():
            raise TransrecError(f"{place}: holds no {what} that can be loaded ({reason}); fetch it again") from error
        raise TransrecError(
            f"no {what} found for {str(name)!r}: it is neither a folder nor in pretrained_models/, and the hub did "
            f"not provide it ({reason}); put the backbone into pretrained_models/ (see its README) or give a path"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the logs of transformers: they quote a folder's content unchecked, and what matters is checked here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _custom_code_error(name: str | Path, place: str) -> TransrecError:
    """Return the error for a model that needs to run Python code of its own."""
    files = [path.name for path in sorted(Path(place).glob("*.json")) if _asks_for_code(path)]
    asking = " and ".join(files) or "its configuration"
    return TransrecError(
        f"{name}: {asking} asks for Python code that comes with the model (auto_map), and no such code is ever run; "
        f"give a model whose model_type transformers itself knows"
    )


def _asks_for_code(path: Path) -> bool:
    try:
        return "auto_map" in read_json(path)
    except (OSError, ValueError, TypeError, TransrecError):
        return False


def _check_kernels(config, name: str | Path) -> None:
    """Raise TransrecError if a configuration, or a part of it, names code from a hub for attention or experts."""
    from transformers import PreTrainedConfig

    for key in ("attn_implementation", "experts_implementation"):
        if "/" in str(value := getattr(config, f"_{key}", None)):
            raise TransrecError(
                f"{name}: config.json asks for code from a hub ({key} {value}), and no such code is ever run; "
                f"remove {key} from config.json"
            )
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            _check_kernels(part, name)


def load_config(name: str | Path, modality: str = "text"):
    """Return the configuration of a backbone; for a multimodal model, the part for `modality`.

    Raises TransrecError if there is none, if it asks for code, and if the model is not a plain stack of blocks.
    """
    from transformers import AutoConfig

    config = _load(name, f"{modality} encoder", partial(AutoConfig.from_pretrained, trust_remote_code=False))
    _check_kernels(config, name)
    config = getattr(config, PARTS.get(modality, f"{modality}_config"), config)
    # Hierarchical models (Swin) and convolutional ones (ResNet) have stages of different widths.
    sizes = [getattr(config, size, None) for size in ("hidden_size", "num_hidden_layers")]
    if hasattr(config, "depths") or not all(isinstance(size, int) for size in sizes):
        raise TransrecError(
            f"{name}: a model of type {config.model_type} is not a plain stack of transformer blocks of one width; "
            f"pretrained_models/README.md names the backbones that work"
        )
    narrower = getattr(config, "word_embed_proj_dim", config.hidden_size)
    if narrower != config.hidden_size:
        raise TransrecError(
            f"{name}: its blocks have width {config.hidden_size}, but its output has width {narrower} "
            f"(word_embed_proj_dim), so it is not a plain stack of blocks of one width; use another text encoder"
        )
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise TransrecError(f"{name}: config.json asks for {layers:,} layers; at most {MOST_LAYERS:,} are built")
    # Otherwise decoders keep the keys and values of every text to generate a next word, which is never done here.
    config.use_cache = False
    return config


def pooling(config, chosen: Literal["auto"] | Pooling) -> Pooling:
    """Return how a text is pooled; "auto" is "cls" for encoders, "last" for decoders (their first token sees no other).

    Encoders are the models for which transformers has a masked language model. The pooling that a folder declares is
    not considered here: a new run's options already contain it (transrec.settings), and "auto" in the options of an
    older run keeps its old meaning.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if chosen != "auto":
        return chosen
    return "cls" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "last"


def declared_pooling(name: str | Path) -> str | None:
    """Return how texts are pooled, as a sentence-transformers folder declares; None if it declares nothing.

    The value is one of `Pooling`, or the declared name of an unsupported pooling ("max", or several as "mean, max").

    Raises TransrecError if the folder's modules.json, or the file that it names, is malformed.
    """
    folder = Path(find_backbone(name))
    path = folder / "modules.json"
    if not path.is_file():
        return None
    try:
        places = [module["path"] for module in read_json(path) if module["type"].rpartition(".")[2] == "Pooling"]
        modes: list[str] = []
        for path in (folder / place / "config.json" for place in places):
            stored = read_json(path)
            named = stored.get("pooling_mode")
            keys = [match[1] for key, on in stored.items() if on is True and (match := POOLING_KEY.fullmatch(key))]
            modes += (keys or ["mean"]) if named is None else [named] if isinstance(named, str) else map(str, named)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransrecError(
            f"{path}: malformed ({type(error).__name__}: {error}); fetch it again, or delete modules.json and choose "
            f"--text_pooling"
        ) from error
    return ", ".join("last" if mode == "lasttoken" else mode for mode in modes) or None


def declare_pooling(folder: Path, chosen: Pooling, width: int) -> None:
    """Write a pooling of texts into a model's folder as sentence-transformers does; `declared_pooling` reads it."""
    mode = "lasttoken" if chosen == "last" else f"{chosen}_token" if chosen == "cls" else f"{chosen}_tokens"
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "1_Pooling").mkdir()
    write_text(folder / "modules.json", json.dumps(modules, indent=2) + "\n")
    content = {"word_embedding_dimension": width, f"pooling_mode_{mode}": True}
    write_text(folder / "1_Pooling" / "config.json", json.dumps(content, indent=2) + "\n")


def load_tokenizer(name: str | Path):
    """Return the tokenizer of a text backbone. Raises TransrecError if there is none."""
    from transformers import AutoTokenizer

    def load(place: str):
        # Without any of these files, transformers invents an empty vocabulary in which every word is unknown.
        if Path(place).is_dir() and not any(file for p in TOKENIZER_FILES for file in Path(place).glob(p)):
            raise TransrecError(f"{place}: no tokenizer there ({', '.join(TOKENIZER_FILES)}); copy its files too")
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        if tokenizer.pad_token is None:
            # Decoders often have none. Padding is masked, so any token will do.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    return _load(name, "tokenizer", load)


def build_backbone(config, modality: str = "text", main_input: str = "") -> "PreTrainedModel":
    """Return a backbone with randomly drawn weights. Raises TransrecError if the model does not read `modality`.

    Args:
        main_input: the main input of models that read `modality`, as transformers names it; text and image need none.
    """
    from transformers import AutoModel

    with _quietly():
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return _checked_encoder(model, config.model_type, modality, main_input)


def load_backbone(
    name: str | Path,
    modality: str = "text",
    main_input: str = "",
    dtype: torch.dtype = torch.float32,
    spread: dict[str, Any] | None = None,
) -> "PreTrainedModel":
    """Return a backbone with its pretrained weights, without the pooler (nothing reads its output).

    Args:
        main_input: the main input of models that read `modality`, as transformers names it; text and image need none.
        dtype: the dtype that the weights are rounded to. The weights stay in float32 if loading in `dtype` would also
            round buffers, which the model computes once. Quantised weights stay as they are.
        spread: device_map and max_memory of transformers; by default the weights are held on the CPU.

    Raises TransrecError if the backbone cannot be found or loaded, if it does not read `modality`, if its weights file
    lacks part of the model or holds NaN or infinity, and as `quantisation` does.
    """
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    # Our own progress bar for each long step is enough.
    disable_progress_bar()
    config = load_config(name, modality)
    quantised = quantisation(config, str(name))

    def load(place: str):
        model, info = AutoModel.from_pretrained(
            place,
            config=config,
            dtype="auto" if quantised else torch.float32 if _rounds_buffers(config, dtype) else dtype,
            output_loading_info=True,
            trust_remote_code=False,
            **(spread or {}),
        )
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise TransrecError(
                f"{place}: the weights file lacks {len(missing)} tensors of the model, {missing[0]} for one; "
                f"it is not the backbone that config.json describes"
            )
        # The scales of quantised weights are buffers.
        checked = dict(model.named_parameters()) | (dict(model.named_buffers()) if quantised else {})
        there = {name: tensor for name, tensor in checked.items() if not tensor.is_meta}
        bad = first_not_finite(there)
        # Tensors that stay on disk are checked in their file.
        where = _bad_tensor_of_file(place) if bad or len(there) < len(checked) else None
        if bad or where:
            if bad and dtype == torch.float16 and where is None:
                raise fp16_overflow_error(bad)
            where = where or f"{place}: the tensor {bad} of its weights"
            raise TransrecError(f"{where} holds NaN or infinity; fetch the file again")
        if quantised:
            return_float32(model)
        else:
            _mark_constants(model)
        return _checked_encoder(model, place, modality, main_input)

    return _load(name, f"{modality} encoder", load)


def _rounds_buffers(config, dtype: torch.dtype) -> bool:
    """Return whether a model loaded in `dtype` computes buffers in it: constants that are not among its weights."""
    from transformers import AutoModel

    if dtype == torch.float32:
        return False
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    return any(buffer.dtype == dtype for buffer in model.buffers())


def fp16_overflow_error(parameter: str) -> TransrecError:
    """Return the error for weights that became infinite when they were rounded to float16."""
    return TransrecError(
        f"--encoder_dtype fp16: the weights {parameter} are larger than fp16 can hold, "
        f"{torch.finfo(torch.float16).max:,.0f}; give --encoder_dtype bf16"
    )


def _bad_tensor_of_file(place: str) -> str | None:
    """Return the file and name of a tensor that is not finite; None if the safetensors files have none."""
    for path in sorted(Path(place).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if not is_finite(file.get_tensor(key)):
                    return f"{path}: the tensor {key}"
    return None


def _mark_constants(model: "PreTrainedModel") -> None:
    """Mark again the parameters that the model declares constant (MAE's positions): loading weights unmarks them."""
    with torch.device("meta"):
        declared = dict(type(model)(model.config).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(declared[name].requires_grad)


def _checked_encoder(model: "PreTrainedModel", name: str, modality: str, main_input: str) -> "PreTrainedModel":
    reads = main_input or MAIN_INPUTS.get(modality, model.main_input_name)
    if model.main_input_name != reads:
        actual = {"input_ids": "text", "pixel_values": "images"}.get(model.main_input_name, model.main_input_name)
        raise TransrecError(f"{name}: a {type(model).__name__} reads {actual}, not {modality}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise TransrecError(f"{name}: a {type(model).__name__} is an encoder and a decoder; give a model that is one")
    parameters = inspect.signature(model.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if more := [name for name in required if name != reads]:
        raise TransrecError(f"{name}: a {type(model).__name__} needs {' and '.join(more)} beside {reads}; give another")
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)
    return model


def has_cls(backbone: nn.Module) -> bool:
    """Return whether an image backbone puts a token that represents the image in front of the patches."""
    return any(CLS_NAME.fullmatch(name.rpartition(".")[2]) for name, _ in backbone.named_parameters())


def image_pooling(config) -> Pooling:
    """Return how an image backbone's layers are pooled: at [CLS], or without one as the mean of all patches."""
    from transformers import AutoModel

    with torch.device("meta"):
        return "cls" if has_cls(AutoModel.from_config(config, trust_remote_code=False)) else "mean"


def set_mask_ratio(backbone: "PreTrainedModel", ratio: float) -> None:
    """Make MAE mask this share of the patches. Raises TransrecError for any other model unless the share is 0."""
    if hasattr(backbone.config, "mask_ratio"):
        backbone.config.mask_ratio = ratio
    elif ratio:
        raise TransrecError(f"--mask_ratio {ratio}: only MAE masks patches, this is a {type(backbone).__name__}")


@dataclass(frozen=True)
class Preprocessing:
    """The input of an image backbone: RGB images of `size` x `size`, scaled to [0, 1] and normalised per channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_image_processor(name: str | Path):
    """Return the image processor stored with an image backbone; None if there is none.

    Raises TransrecError if it asks for code.
    """
    from transformers import AutoImageProcessor

    def load(place: str):
        try:
            return AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise
            return None

    return _load(name, "image processor", load)


def load_preprocessing(name: str | Path, config) -> Preprocessing:
    """Read the backbone's preprocessor_config.json; without one, use mean and std 0.5 and the size in config.json.

    Raises TransrecError for a malformed file, naming the value.
    """
    from transformers.image_processing_utils import BaseImageProcessor

    place = find_backbone(name)
    file = Path(place) / "preprocessor_config.json"

    def load(place: str) -> dict[str, Any]:
        try:
            return BaseImageProcessor.get_image_processor_dict(place)[0]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            if file.exists():
                raise TransrecError(
                    f"{file}: not a JSON object that can be read; fetch it again, or delete it"
                ) from error
            return {}

    stored = _load(name, "image processor", load)

    if not isinstance(stored, dict):
        raise TransrecError(f"{file}: not a JSON object; fetch it again, or delete it")
    key = "crop_size" if stored.get("do_center_crop") else "size"
    size = stored.get(key) or config.image_size
    if isinstance(size, dict):
        if size.get("width", size.get("height")) != size.get("height"):
            raise TransrecError(f"{file}: {key} is {size!r}; only square images are read")
        size = size.get("height") or size.get("shortest_edge") or config.image_size
    if not isinstance(size, int) or not 1 <= size <= LARGEST_IMAGE:
        raise TransrecError(f"{file}: {key} is {stored.get(key)!r}; it must be 1 to {LARGEST_IMAGE:,} pixels")
    usual = (0.5,) * config.num_channels
    mean, std = (stored.get(key) or usual for key in ("image_mean", "image_std"))
    for key, values, least in (("image_mean", mean, -math.inf), ("image_std", std, 0)):
        if not _are_numbers(values, config.num_channels, least):
            above = " above 0" if least == 0 else ""
            raise TransrecError(f"{file}: {key} is {values!r}; it must be {len(usual)} finite numbers{above}")
    if stored.get("do_normalize") is False:
        mean, std = (0.0,) * len(mean), (1.0,) * len(std)
    # Pixels of 0 to 255 are multiplied by this factor; here they are divided by 255 first.
    factor = stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 1
    if not _are_numbers([factor], 1, 0):
        raise TransrecError(f"{file}: rescale_factor is {factor!r}; it must be a finite number above 0")
    if not math.isclose(scale := 255 * factor, 1, rel_tol=1e-6):
        mean, std = ([value / scale for value in values] for values in (mean, std))
    return Preprocessing(size, tuple(mean), tuple(std))


def _are_numbers(values: Any, count: int, least: float) -> bool:
    if not isinstance(values, list | tuple) or len(values) != count:
        return False
    return all(isinstance(value, int | float) and least < value < math.inf for value in values)


def check_image_size(backbone: nn.Module, preprocessing: Preprocessing, name: str) -> None:
    """Raise TransrecError if a backbone cannot read images of the size that its preprocessing makes."""
    size = preprocessing.size
    image = torch.zeros(1, len(preprocessing.mean), size, size)
    try:
        # MAE draws which patches it masks.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            backbone(pixel_values=image)
    except ValueError as error:
        raise TransrecError(
            f"{name}: images are made {size} x {size} pixels, as preprocessor_config.json says, and the weights cannot "
            f"read that size ({error}); correct the size there, or image_size in config.json"
        ) from error


def check_text_length(config, length: int, flag: str = "--title_tokens") -> None:
    """Raise TransrecError if texts of `length` tokens, set by `flag`, exceed the backbone's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and related models count positions from padding_idx + 1.
    offset = config.pad_token_id + 1 if OFFSET_POSITIONS.search(config.model_type) else 0
    if positions and length + offset > positions:
        raise TransrecError(
            f"{flag}: {length} tokens per text, prompts included, and the text encoder takes {positions - offset}"
        )


def check_tokens(input_ids: np.ndarray, lengths: np.ndarray, tokenizer, config, name: str) -> None:
    """Raise TransrecError if tokenizer and model do not match, or if the tokenizer does not know most word pieces.

    Args:
        input_ids: int [n, T], right-padded.
        lengths: int [n], the number of tokens before the padding.
    """
    if (largest := int(input_ids.max())) >= getattr(config, "vocab_size", math.inf):
        raise TransrecError(
            f"{name}: the tokenizer gives token {largest}, the model knows {config.vocab_size}; "
            f"the folder's tokenizer and weights are of different models"
        )
    # Padding is left out by its place: some tokenizers pad with the token of unknown words.
    tokens = input_ids[np.arange(input_ids.shape[1]) < lengths[:, None]]
    words = ~np.isin(tokens, [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id])
    unknown = (tokens == tokenizer.unk_token_id).sum() / max(1, words.sum())
    if unknown > MOSTLY_UNKNOWN:
        raise TransrecError(
            f"{name}: {unknown:.0%} of the titles' word pieces are unknown to its tokenizer; "
            f"check its vocabulary, the titles' language and --lower_case"
        )
