"""The original authors' checkpoints <-> ours.

An `epoch-N.pt` is a dict with `model_state_dict`, optimiser and random states. Only tensors and plain containers are
unpickled, and only the weights are used.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from transrec import methods
from transrec.errors import TransrecError
from transrec.methods.base import MethodOptions
from transrec.models.backbone import build_backbone, load_config, load_preprocessing, set_mask_ratio, view
from transrec.models.items import ContentItemEncoder, ImageItemEncoder, TextItemEncoder
from transrec.models.objectives import OBJECTIVES
from transrec.models.recommender import Recommender
from transrec.models.sequence import SASRec
from transrec.paths import resolve
from transrec.training import checkpoint

TEXT = r"^bert_encoder\.text_encoders\.title\."
IMAGE = r"^cv_encoder\.image_net\."
USER = r"^user_encoder\.transformer_encoder\."

# Applied in order, each to the result of the one before. `@3.query.` is the query projection of the image backbone's
# block 3: where that is, hangs on the layout that transformers gives the model (`Places`).
KEY_RULES = [
    # Where things are. K-Adapter wraps the whole backbone and the list of blocks, other adapters wrap single blocks.
    (rf"{TEXT}bert_model\.bert_adapter_list\.", "item_encoder.backbone.k_adapter.adapters."),
    (rf"{TEXT}bert_model\.com_dense\.", "item_encoder.backbone.k_adapter.fusion."),
    (rf"{TEXT}bert_model\.(?:bert_model\.)?", "item_encoder.backbone."),
    (rf"{TEXT}fc\.", "item_encoder.projection."),
    (rf"{IMAGE}(?:vit\.)?encoder\.bert_adapter_list\.", "item_encoder.backbone.k_adapter.adapters."),
    (rf"{IMAGE}(?:vit\.)?encoder\.com_dense\.", "item_encoder.backbone.k_adapter.fusion."),
    (rf"{IMAGE}(?:vit\.)?encoder\.(?:vit_encoder\.)?layer\.(\d+)\.", r"@\1."),
    (rf"{IMAGE}classifier\.|^cv_encoder\.cv_proj\.", "item_encoder.projection."),
    (rf"{IMAGE}(?:vit\.)?embeddings\.Prompt_Tokens$", "item_encoder.backbone.prompt.vectors"),
    (rf"{IMAGE}(?:vit\.)?embeddings\.wte\.", "item_encoder.backbone.embeddings."),
    (rf"{IMAGE}(?:vit\.)?", "item_encoder.backbone."),
    (rf"{USER}transformer_blocks\.adapter_list\.", "user_encoder.k_adapter.adapters."),
    (rf"{USER}transformer_blocks\.com_dense2\.", "user_encoder.k_adapter.fusion."),
    (
        rf"{USER}transformer_blocks\.(?:transformer_blocks\.)?(\d+)\.(?:transformer_block\.)?",
        r"user_encoder.blocks.\1.",
    ),
    (USER, "user_encoder."),
    # The parts of a SASRec block, K-Adapter's own included.
    (r"(\.k_adapter\.adapters\.\d+)\.transformer_blocks\.", r"\1.blocks."),
    (r"\.multi_head_attention\.w_Q\.", ".attention.query."),
    (r"\.multi_head_attention\.w_K\.", ".attention.key."),
    (r"\.multi_head_attention\.w_V\.", ".attention.value."),
    (r"\.multi_head_attention\.fc\.", ".attention_output.dense."),
    (r"\.multi_head_attention\.layer_norm\.", ".attention_output.layer_norm."),
    (r"\.feed_forward\.w_1\.", ".up."),
    (r"\.feed_forward\.w_2\.", ".feed_forward_output.dense."),
    (r"\.feed_forward\.layer_norm\.", ".feed_forward_output.layer_norm."),
    # Where adapters are. A wrapped sub-layer of the backbone keeps its own tensors one level down.
    (r"^(user_encoder\.blocks\.\d+)\.adapter1\.", r"\1.attention_output.dropout.adapter."),
    (r"^(user_encoder\.blocks\.\d+)\.adapter2?\.", r"\1.feed_forward_output.dropout.adapter."),
    (r"^(user_encoder\.blocks\.\d+)\.LN\.", r"\1.feed_forward_output.layer_norm.norm."),
    (r"\.self_output\.", "."),
    (r"^(item_encoder\..*)\.output\.adapter\.", r"\1.output.dropout.adapter."),
    (r"^(item_encoder\..*)\.output\.LN\.", r"\1.output.LayerNorm.norm."),
    (r"\.word_embeddings\.learned_embedding$", ".prompt.vectors"),
    (r"^(item_encoder\.backbone)\.embeddings(\.prompt\.vectors)$", r"\1\2"),
    (r"\.word_embeddings\.wte\.", ".word_embeddings."),
    # The parts of a block of an image backbone.
    (r"^(@\d+)\.attention\.attention\.(query|key|value)\.", r"\1.\2."),
    (r"^(@\d+\.attention)\.output\.dense\.", r"\1.projection."),
    (r"^(@\d+)\.intermediate\.dense\.", r"\1.feed_forward.entry."),
    (r"^(@\d+)\.output\.dense\.", r"\1.feed_forward.projection."),
    (r"^(@\d+)\.output\.adapter\.", r"\1.feed_forward.output.adapter."),
    (r"^(@\d+)\.layernorm_before\.", r"\1.attention.stream."),
    (r"^(@\d+)\.layernorm_after\.", r"\1.feed_forward.stream."),
    # The parts of an adapter.
    (r"\.adapter\.fc_(down|up)\.", r".adapter.\1."),
    (r"\.(down|up)_project\.", r".\1."),
    (r"\.adapter\.(down|up)_sampler\.W_", r".adapter.\1."),
    (r"\.adapter\.(down|up)_sampler\.b$", r".adapter.\1.bias"),
    (r"\.adapter\.(down|up)_sampler\.phm_rule$", r".adapter.\1.rule"),
]

# With a second LayerNorm (Pfeiffer's) the adapter sits between the two, not behind the dropout.
BETWEEN_NORMS = [
    (r"^(item_encoder\..*)\.output\.dropout\.adapter\.", r"\1.output.LayerNorm.adapter."),
    (r"\.feed_forward_output\.dropout\.adapter\.", ".feed_forward_output.layer_norm.adapter."),
]

# Methods with which the original scripts trained the LayerNorms too.
LAYERNORM_TRAINED = {"text": {"pfeiffer", "pfeiffer_attention", "compacter"}, "image": set()}

# Tensors that no computation reads: BERT's pooler, position numbers that older transformers stored, and Compacter's
# rule, which every adapter repeats.
UNREAD = re.compile(
    rf"{TEXT}bert_model\.(bert_model\.)?(pooler\.|embeddings\.(position_ids|token_type_ids)$)|^phm_rule$"
)
# Prefixes of whole checkpoints: DDP's, and that of the program which shares Compacter's rule.
PREFIX = re.compile(r"^(?:module\.|model\.)+")
ADAPTED = re.compile(r"\.adapter\.|\.lora_[AB]$|\.k_adapter\.|\.prompt\.")


@dataclass(frozen=True)
class Original:
    """An original checkpoint under our names.

    Attributes:
        tensors: float32, by the names of `our_names`.
        sizes: item_tower, embedding_dim, max_seq_len and blocks, read from the tensors.
    """

    tensors: dict[str, Tensor]
    sizes: dict[str, Any]

    def tensors_for(self, recommender: Recommender) -> dict[str, Tensor]:
        """The tensors by the parameter names of a recommender without a method."""
        places = Places(recommender)
        return {places.name(name): tensor for name, tensor in self.tensors.items()}

    @property
    def adapted(self) -> bool:
        return any(ADAPTED.search(name) for name in self.tensors)


class Places:
    """Where the blocks of a recommender's backbone are; made before a method is applied, it serves after that too."""

    ROLES = (
        *("query", "key", "value"),
        *("attention.stream", "attention.projection", "attention.output"),
        *("feed_forward.stream", "feed_forward.entry", "feed_forward.projection", "feed_forward.output"),
    )

    def __init__(self, recommender: Recommender):
        self.recommender = recommender
        self.paths: dict[str, str] = {}
        backbone = recommender.item_encoder.backbone
        path_of = {module: path for path, module in backbone.named_modules(prefix="item_encoder.backbone")}
        for number, block in enumerate(view(backbone).blocks):
            for role in self.ROLES:
                self.paths[f"@{number}.{role}"] = path_of[attrgetter(role)(block).module]

    def name(self, name: str) -> str:
        """The parameter's name for a name of `our_names`."""
        role = next((role for role in sorted(self.paths, key=len, reverse=True) if name.startswith(f"{role}.")), None)
        if role is None:
            return name
        path, rest = self.paths[role], name.removeprefix(f"{role}.")
        # What an adapter wraps lies one level down.
        wrapped = hasattr(self.recommender.get_submodule(path), "inner") and not rest.startswith("adapter.")
        return f"{path}.inner.{rest}" if wrapped else f"{path}.{rest}"


def our_names(keys: Iterable[str]) -> dict[str, str]:
    """Our parameter's name for each original state-dict key that something reads; `Places` completes names with @."""
    keys = list(keys)
    rules = KEY_RULES + (BETWEEN_NORMS if any(".LN." in key for key in keys) else [])
    names = {}
    for key in keys:
        name = PREFIX.sub("", key)
        if UNREAD.search(name):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        names[key] = name
    return names


def read_original(path: Path) -> Original:
    """Read `epoch-N.pt`, or the same state dict as .safetensors.

    Raises TransrecError for a missing or damaged file, one that holds anything but tensors and plain containers, and
    one that is no recommender of the original programs.
    """
    state = _load_state(path)
    tensors = {name: state[key].float() for key, name in our_names(state).items()}
    if (prompt := tensors.get("item_encoder.backbone.prompt.vectors")) is not None:
        # Image prompts carry an axis for the batch.
        tensors["item_encoder.backbone.prompt.vectors"] = prompt.reshape(prompt.shape[-2:])
    positions = tensors.get("user_encoder.position_embedding.weight")
    if positions is None:
        raise TransrecError(
            f"{path}: not an original recommender: it has no user_encoder.transformer_encoder.position_embedding"
        )
    blocks = {name.split(".")[2] for name in tensors if name.startswith("user_encoder.blocks.")}
    sizes = {"max_seq_len": positions.shape[0], "embedding_dim": positions.shape[1], "blocks": len(blocks)}
    image = any(PREFIX.sub("", key).startswith("cv_encoder.") for key in state)
    return Original(tensors, sizes | {"item_tower": "image" if image else "text"})


def _load_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError) as error:
        raise TransrecError(f"{path}: cannot read the checkpoint ({error})") from error
    except pickle.UnpicklingError as error:
        raise TransrecError(
            f"{path}: damaged, or holds objects other than tensors, which are never unpickled ({_first_line(error)})"
        ) from error
    except (SafetensorError, RuntimeError) as error:
        raise TransrecError(f"{path}: truncated or damaged ({_first_line(error)}); copy it again") from error
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TransrecError(f"{path}: no model_state_dict of tensors in it")
    return dict(state)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def load_original(
    path: str | Path,
    text_encoder: str | Path | None = None,
    method: str | None = None,
    variant: str = "published",
    method_options: MethodOptions | None = None,
    objective: str = "sasrec",
    heads: int = 2,
    dropout: float = 0.1,
    image_encoder: str | Path | None = None,
    mask_ratio: float = 0.0,
) -> Recommender:
    """The recommender of an original checkpoint, in eval mode on the CPU in float32.

    Every tensor is accounted for: each has its place, each place is filled.

    Args:
        path: `epoch-N.pt`, or the same state dict as .safetensors.
        text_encoder, image_encoder: folder or name whose config.json describes the backbone; its weights are not read.
        method: of an adapted checkpoint, by its name in `transrec.methods`.
        variant: what the method computes; the original programs computed "published".
        method_options: of the method; where not given, sizes are read from the tensors, and what trains is what the
            original scripts trained.
        objective, heads, dropout: what tensors do not tell.
        mask_ratio: share of the patches that MAE masks; the original programs masked 0.75, evaluation included.

    Raises TransrecError when the file cannot be read, and when a tensor has no place or a place no tensor.
    """
    path = resolve(path)
    original = read_original(path)
    sizes = original.sizes
    name = method or "full"
    if original.adapted != issubclass(methods.get(name).Options, methods.InsertOptions):
        raise TransrecError(
            f"{path}: holds adapters; say which method with method=..."
            if original.adapted
            else f"{path}: holds no adapters, so it is not of method {method!r}"
        )
    recommender = Recommender(
        _item_encoder(path, sizes, {"text": text_encoder, "image": image_encoder}, mask_ratio),
        SASRec(sizes["embedding_dim"], sizes["max_seq_len"], sizes["blocks"], heads, dropout),
        OBJECTIVES[objective](),
    )
    places = Places(recommender)
    options = method_options or _options_from(original, name, variant, places)
    methods.apply(recommender, name, options, methods.Rates(recommender=1e-4, backbone=5e-5))
    tensors = {places.name(key): tensor for key, tensor in original.tensors.items()}
    checkpoint.load_into(recommender, path, _without_aliases(tensors, recommender))
    return recommender.eval()


def _item_encoder(
    path: Path, sizes: dict[str, Any], encoders: dict[str, str | Path | None], mask_ratio: float
) -> ContentItemEncoder:
    content = sizes["item_tower"]
    if encoders[content] is None:
        raise TransrecError(
            f"{path}: is of a recommender over {content}; say which backbone with {content}_encoder=..."
        )
    config = load_config(encoders[content], content)
    backbone = build_backbone(config, content)
    if content == "text":
        return TextItemEncoder(backbone, sizes["embedding_dim"])
    set_mask_ratio(backbone, mask_ratio)
    return ImageItemEncoder(backbone, sizes["embedding_dim"], load_preprocessing(encoders[content], config))


def _options_from(original: Original, method: str, variant: str, places: Places) -> MethodOptions:
    """Options of an adapted checkpoint, as far as its tensors tell."""
    options = methods.get(method).Options
    found: dict[str, Any] = {}
    towers = set()
    for name_of_flag, (pattern, axis) in getattr(options, "_tensor_sizes", {}).items():
        for name, tensor in original.tensors.items():
            if re.fullmatch(pattern, places.name(name)):
                found[name_of_flag] = tensor.shape[axis]
                towers.add(name.partition("_")[0])
    if len(towers) == 1:
        found["insert"] = towers.pop()
    flags = {field.name for field in fields(options)}
    if "variant" in flags:
        found["variant"] = variant
    if "train_layernorm" in flags:
        found["train_layernorm"] = method in LAYERNORM_TRAINED[original.sizes["item_tower"]]
    return options(**found)


def _without_aliases(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors less those that repeat a shared parameter under another of its names."""
    first_name: dict[nn.Parameter, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first_name.setdefault(parameter, name)
    aliases = {
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name in tensors
        and first_name[parameter] != name
        and torch.equal(tensors[name], tensors[first_name[parameter]])
    }
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}
