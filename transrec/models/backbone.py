"""One view of any transformer stack, and loading text and image backbones.

Methods attach to sites, never to classes: a stack has blocks, a block has query, key and value projections and two
sub-layers, attention and feed-forward. Sites are found by structure, so that a new layout of a known model, or a model
nobody listed, needs nothing here as long as it is built from such blocks. Our SASRec is one of them.
"""

import errno
import inspect
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

from transrec.errors import TransrecError, file_error, is_memory_shortage, os_error
from transrec.finite import first_not_finite, is_finite
from transrec.models.quantised import give_float32, quantisation
from transrec.paths import resolve
from transrec.untrusted import check_model_folder, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where it is not MODALITY_config: the part of a configuration of several modalities.
PARTS = {"image": "vision_config"}
MAIN_INPUTS = {"text": "input_ids", "image": "pixel_values"}

Pooling = Literal["cls", "last", "mean"]
POOLINGS = get_args(Pooling)

PROJECTION_NAME = re.compile(r"(?:w_)?(q|k|v|query|key|value)(?:_proj|_lin|_linear)?", re.IGNORECASE)
# DeBERTa's projections of relative positions sit beside query and key and end no sub-layer.
POSITION_NAME = re.compile(r"pos_")
# Nor do gates of the residual sums that sub-layers end in.
RESIDUAL_GATE = "residual_gate"
# DistilBERT's LayerNorms are the block's own children, as those of pre-LN blocks are, and yet stand behind a sub-layer.
NORM_BEHIND = re.compile(r"(?:sa|output)_layer_norm")
# sentence-transformers' ways of pooling: a key for each in files of its older releases, one key with their names since.
POOLING_KEY = re.compile(r"pooling_mode_(cls|max|mean|mean_sqrt_len|weightedmean|last)_?token(?:s)?")
CLS_NAME = re.compile(r"cls_token|class_token|class_embedding")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
MOSTLY_UNKNOWN = 0.5
LARGEST_IMAGE = 4096
OFFSET_POSITIONS = re.compile(r"roberta|camembert|mpnet")
# Several times the deepest there are.
MOST_LAYERS = 1000


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

    @property
    def is_shared(self) -> bool:
        """Whether several layers share a block (ALBERT); what is inserted there is shared too."""
        config = getattr(self.module, "config", None)
        return config is not None and config.num_hidden_layers != len(self.blocks)


def view(module: nn.Module) -> Stack:
    """The stack inside `module`: the list of alike blocks that holds the most parameters.

    Raises TransrecError for a module without such a list, or whose blocks lack a site.
    """
    blocks = [_view_block(block) for block in blocks_of(module)]
    return Stack(module, blocks, cast(nn.Linear, blocks[0].attention.projection.module).out_features)


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


def recompute_blocks(module: nn.Module) -> None:
    """From now on keep of each block only its input for the backward pass, which computes the rest again.

    Values and gradients stay the same, dropout's included, in training and in eval mode.

    Raises TransrecError as `blocks_of`.
    """
    for block in blocks_of(module):
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    return checkpoint(forward, *arguments, use_reentrant=False, **options)


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
        elif not POSITION_NAME.match(name) and name != RESIDUAL_GATE:
            others.append(site)
    if len(projections) != 3 or len(others) < 3 or several:
        found = f"{'several times ' if several else ''}{sorted(projections)}"
        raise TransrecError(
            f"{type(block).__name__}: found the projections {found} and {len(others)} other linear layers; to insert "
            f"anything, a block needs query, key and value once each and at least an attention output and two "
            f"feed-forward layers; use --method full, frozen or iisan, or a backbone of pretrained_models/README.md"
        )
    query = projections["q"]
    # Definition order is data-flow order: attention output first, then feed-forward from up to down projection; and of
    # a block's own LayerNorms the first is attention's, the last the feed-forward sub-layer's.
    norms = [Site(block, name) for name, child in block.named_children() if is_norm(child)]
    of_attention, of_feed_forward = (norms[0], norms[-1]) if norms else (None, None)
    attention = _view_sublayer(query, of_attention, others[0], query)
    feed_forward = _view_sublayer(others[1], of_feed_forward, others[-1], query)
    return Block(block, query, projections["k"], projections["v"], attention, feed_forward)


def _view_sublayer(entry: Site, own_norm: Site | None, projection: Site, query: Site) -> Sublayer:
    # What lies beside the query projection belongs to the attention probabilities, not to the sub-layer's end.
    siblings = {} if projection.parent is query.parent else dict(projection.parent.named_children())
    dropouts = [name for name, child in siblings.items() if isinstance(child, nn.Dropout)]
    norms = [name for name, child in siblings.items() if isinstance(child, nn.LayerNorm)]
    # Nor does a dropout that lies beside the whole attention belong to one sub-layer (ALBERT's is never called).
    if query.module in projection.parent.modules():
        dropouts = []
    output = Site(projection.parent, dropouts[0]) if len(dropouts) == 1 else projection
    if own_norm and NORM_BEHIND.fullmatch(own_norm.name):
        norm = own_norm
    else:
        norm = Site(projection.parent, norms[0]) if len(norms) == 1 else None
    return Sublayer(entry, entry if norm else own_norm or entry, projection, output, norm)


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
        if Path(place).is_dir():
            check_model_folder(Path(place))
        with _quietly():
            return load(place)
    except TransrecError:
        raise
    # Loading runs foreign code over foreign files: what it may raise has no end.
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise _needs_code(name, place) from error
        if is_memory_shortage(error):
            raise
        cause = os_error(error)
        if cause and cause.errno not in (None, errno.ENOENT) and Path(place).is_dir():
            raise file_error(cause, cause.filename or place, what="cannot be read") from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if Path(place).is_dir():
            raise TransrecError(f"{place}: holds no {what} that can be loaded ({reason}); fetch it again") from error
        raise TransrecError(
            f"no {what} found for {str(name)!r}: it is no folder, none of pretrained_models/, and the hub did not "
            f"give it ({reason}); put the backbone into pretrained_models/ (see its README) or give a path"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Within, transformers logs nothing: it quotes what a folder says as it is, and what matters is checked here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _needs_code(name: str | Path, place: str) -> TransrecError:
    """What to tell of a model whose own Python would have to run."""
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
    """Raise TransrecError when a configuration or a part of it names a program of a hub to compute attention with."""
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
    """The configuration of a backbone; of a model of several modalities the part for `modality`.

    Raises TransrecError when there is none, and when it asks for code.
    """
    from transformers import AutoConfig

    config = _load(name, f"{modality} encoder", partial(AutoConfig.from_pretrained, trust_remote_code=False))
    _check_kernels(config, name)
    config = getattr(config, PARTS.get(modality, f"{modality}_config"), config)
    # Hierarchical models (Swin) and convolutions (ResNet): stages, each of a width of its own.
    sizes = [getattr(config, size, None) for size in ("hidden_size", "num_hidden_layers")]
    if hasattr(config, "depths") or not all(isinstance(size, int) for size in sizes):
        raise TransrecError(
            f"{name}: a model of type {config.model_type} is no plain stack of transformer blocks of one width; "
            f"pretrained_models/README.md names the backbones that work"
        )
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise TransrecError(f"{name}: config.json asks for {layers:,} layers; at most {MOST_LAYERS:,} are built")
    # Decoders would keep the keys and values of every text for a next word that nobody asks for.
    config.use_cache = False
    return config


def pooling(config, chosen: Literal["auto"] | Pooling) -> Pooling:
    """Where a text backbone is read; "auto": encoders at [CLS], decoders, whose first token sees nothing, at the last.

    Encoders are those that transformers has a masked language model of. What a folder declares is not asked here: a new
    run's options hold it already (transrec.settings), and "auto" in those of an older run means what it meant then.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if chosen != "auto":
        return chosen
    return "cls" if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "last"


def declared_pooling(name: str | Path) -> str | None:
    """How a text is read, as a folder of sentence-transformers declares it; None where nothing is declared.

    It is one of `Pooling`, or what we lack by its own name ("max", or several as "mean, max").

    Raises TransrecError when the folder's modules.json, or the file that it names, is malformed.
    """
    folder = Path(find_backbone(name))
    path = folder / "modules.json"
    if not path.is_file():
        return None
    try:
        places = [one["path"] for one in read_json(path) if one["type"].rpartition(".")[2] == "Pooling"]
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


def load_tokenizer(name: str | Path):
    """The tokenizer of a text backbone. Raises TransrecError when there is none."""
    from transformers import AutoTokenizer

    def load(place: str):
        # Without any of these transformers makes up an empty vocabulary, in which every word is unknown.
        if Path(place).is_dir() and not any(file for p in TOKENIZER_FILES for file in Path(place).glob(p)):
            raise TransrecError(f"{place}: no tokenizer there ({', '.join(TOKENIZER_FILES)}); copy its files too")
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        if tokenizer.pad_token is None:
            # Decoders' often have none; what stands behind a text is masked, whatever it is.
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer

    return _load(name, "tokenizer", load)


def build_backbone(config, modality: str = "text", main_input: str = "") -> "PreTrainedModel":
    """A backbone of freshly drawn weights. Raises TransrecError when the model does not read `modality`.

    Args:
        main_input: of models that read `modality`, as transformers names it; text and image have theirs.
    """
    from transformers import AutoModel

    with _quietly():
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return _of_modality(model, config.model_type, modality, main_input)


def load_backbone(
    name: str | Path,
    modality: str = "text",
    main_input: str = "",
    dtype: torch.dtype = torch.float32,
    spread: dict[str, Any] | None = None,
) -> "PreTrainedModel":
    """A backbone with its pretrained weights, without the pooler (nothing reads it).

    Args:
        main_input: of models that read `modality`, as transformers names it; text and image have theirs.
        dtype: what its weights are rounded to; where that would round what the model computes once, its buffers, they
            stay in float32. Quantised weights stay as they are.
        spread: device_map and max_memory of transformers; by default the weights are held on the CPU.

    Raises TransrecError when it cannot be found or loaded, does not read `modality`, when its weights file lacks part
    of the model, and as `quantisation`.
    """
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    # One bar for each long step of ours is enough.
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
        # What stays on disk is read there.
        where = _bad_tensor_of_file(place) if bad or len(there) < len(checked) else None
        if bad or where:
            if bad and dtype == torch.float16 and where is None:
                raise beyond_fp16(bad)
            where = where or f"{place}: the tensor {bad} of its weights"
            raise TransrecError(f"{where} holds NaN or infinity; fetch the file again")
        if quantised:
            give_float32(model)
        else:
            _mark_constants(model)
        return _of_modality(model, place, modality, main_input)

    return _load(name, f"{modality} encoder", load)


def _rounds_buffers(config, dtype: torch.dtype) -> bool:
    """Whether a model loaded in `dtype` computes constants of its own in it, which are not among its weights."""
    from transformers import AutoModel

    if dtype == torch.float32:
        return False
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    return any(buffer.dtype == dtype for buffer in model.buffers())


def beyond_fp16(parameter: str) -> TransrecError:
    """What to raise for weights that became infinite when they were rounded to float16."""
    return TransrecError(
        f"--encoder_dtype fp16: the weights {parameter} are larger than fp16 can hold, "
        f"{torch.finfo(torch.float16).max:,.0f}; give --encoder_dtype bf16"
    )


def _bad_tensor_of_file(place: str) -> str | None:
    """The weights file with a tensor that is not finite, and its name there; None where no file in safetensors has."""
    for path in sorted(Path(place).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if not is_finite(file.get_tensor(key)):
                    return f"{path}: the tensor {key}"
    return None


def _mark_constants(model: "PreTrainedModel") -> None:
    """Loading weights forgets which parameters the model declares constant (MAE's positions): say it again."""
    with torch.device("meta"):
        declared = dict(type(model)(model.config).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(declared[name].requires_grad)


def _of_modality(model: "PreTrainedModel", name: str, modality: str, main_input: str) -> "PreTrainedModel":
    reads = main_input or MAIN_INPUTS.get(modality, model.main_input_name)
    if model.main_input_name != reads:
        other = {"input_ids": "text", "pixel_values": "images"}.get(model.main_input_name, model.main_input_name)
        raise TransrecError(f"{name}: a {type(model).__name__} reads {other}, not {modality}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise TransrecError(f"{name}: a {type(model).__name__} is an encoder and a decoder; give a model that is one")
    given = inspect.signature(model.forward).parameters.values()
    required = [p.name for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if more := [name for name in required if name != reads]:
        raise TransrecError(f"{name}: a {type(model).__name__} needs {' and '.join(more)} beside {reads}; give another")
    if getattr(model, "pooler", None) is not None:
        model.register_module("pooler", None)
    return model


def has_cls(backbone: nn.Module) -> bool:
    """Whether an image backbone puts a token that stands for the image in front of the patches."""
    return any(CLS_NAME.fullmatch(name.rpartition(".")[2]) for name, _ in backbone.named_parameters())


def image_pooling(config) -> Pooling:
    """Where an image backbone's layers are read: at [CLS], without one ("mean") over all patches."""
    from transformers import AutoModel

    with torch.device("meta"):
        return "cls" if has_cls(AutoModel.from_config(config, trust_remote_code=False)) else "mean"


def set_mask_ratio(backbone: "PreTrainedModel", ratio: float) -> None:
    """Have MAE mask that share of the patches. Raises TransrecError when another model is to mask any."""
    if hasattr(backbone.config, "mask_ratio"):
        backbone.config.mask_ratio = ratio
    elif ratio:
        raise TransrecError(f"--mask_ratio {ratio}: only MAE masks patches, this is a {type(backbone).__name__}")


@dataclass(frozen=True)
class Preprocessing:
    """The input of an image backbone: RGB images of `size` x `size`, scaled to [0, 1] and normalised by channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_image_processor(name: str | Path):
    """The image processor that lies beside an image backbone; None if there is none.

    Raises TransrecError when it asks for code.
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
    """From the backbone's preprocessor_config.json; without one, mean and std 0.5 and the size in its config.json.

    Raises TransrecError for a malformed one, naming the value.
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
        size = size.get("height") or size.get("shortest_edge") or config.image_size
    if not isinstance(size, int) or not 1 <= size <= LARGEST_IMAGE:
        raise TransrecError(f"{file}: {key} is {stored.get(key)!r}; it must be 1 to {LARGEST_IMAGE:,} pixels")
    usual = (0.5,) * config.num_channels
    mean, std = (stored.get(key) or usual for key in ("image_mean", "image_std"))
    for key, values, least in (("image_mean", mean, -math.inf), ("image_std", std, 0)):
        if not _are_numbers(values, config.num_channels, least):
            above = " above 0" if least == 0 else ""
            raise TransrecError(f"{file}: {key} is {values!r}; it must be {len(usual)} finite numbers{above}")
    return Preprocessing(size, tuple(mean), tuple(std))


def _are_numbers(values: Any, count: int, least: float) -> bool:
    if not isinstance(values, list | tuple) or len(values) != count:
        return False
    return all(isinstance(value, int | float) and least < value < math.inf for value in values)


def check_text_length(config, length: int, flag: str = "--title_tokens") -> None:
    """Raise TransrecError when texts of `length` tokens, which `flag` decides, exceed the backbone's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from padding_idx + 1.
    offset = config.pad_token_id + 1 if OFFSET_POSITIONS.search(config.model_type) else 0
    if positions and length + offset > positions:
        raise TransrecError(
            f"{flag}: {length} tokens per text, prompts included, and the text encoder takes {positions - offset}"
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
