"""Reads checkpoints of the papers' original programs into transrec recommenders.

An `epoch-N.pt` holds a dict with `model_state_dict`, optimiser state and random states. Only tensors and plain
containers are unpickled, and only the weights are used.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from transrec import methods
from transrec.errors import TransrecError, about_file, reason_of
from transrec.methods.base import MethodOptions
from transrec.methods.iisan import IISANOptions, SideNetwork
from transrec.methods.iisan.options import INTER
from transrec.modalities import BackboneModality
from transrec.modalities.image import Image, ImageOptions
from transrec.modalities.text import Text, TextOptions
from transrec.models.backbone import view
from transrec.models.items import make_item_encoder
from transrec.models.objectives import OBJECTIVES
from transrec.models.recommender import Recommender
from transrec.models.user_encoders.sasrec import SASRec
from transrec.paths import resolve
from transrec.training import checkpoint
from transrec.untrusted import check_torch_file, safetensors_header

TEXT = r"^bert_encoder\.text_encoders\.title\."
IMAGE = r"^cv_encoder\.image_net\."
USER = r"^user_encoder\.transformer_encoder\."

# The side network in IISAN's programs, cached and uncached. There, the gate of each step of a tower is a separate
# tensor; here, the gates of a tower are one vector.
SIDE_RULES = [
    (r"^mm_encoder\.cv_adapter_list\.", "side.intra.image.adapters."),
    (r"^mm_encoder\.bert_adapter_list\.", "side.intra.text.adapters."),
    (r"^mm_encoder\.mm_adapter_list\.", "side.inter.adapters."),
    (r"^mm_encoder\.fc_cv\.", "side.intra.image.end."),
    (r"^mm_encoder\.fc_bert\.", "side.intra.text.end."),
    (r"^mm_encoder\.fc_mm\.", "side.inter.end."),
    (r"^mm_encoder\.fc_mm_down\.", "side.inter.projection."),
    (r"^mm_encoder\.down_project_list\.", "side.inter.align."),
    (r"^mm_encoder\.side_gate_params_cv\.", "side.intra.image.gates."),
    (r"^mm_encoder\.side_gate_params_text\.", "side.intra.text.gates."),
    (r"^mm_encoder\.side_gate_params_mm\.", "side.inter.gates."),
    (r"^mm_encoder\.(?:cv_pre_fc|cv_encoder\.image_net\.classifier)\.", "side.projections.image."),
    (r"^mm_encoder\.(?:bert_pre_fc|bert_encoder\.text_encoders\.title\.fc)\.", "side.projections.text."),
    (r"^com_dense\.", "side.fusion."),
    (r"^(side\..*)\.fc_(down|up)\.", r"\1.\2."),
]
SIDE_PREFIX = "item_encoder.side."
GATE = re.compile(r"^(side\..*\.gates)\.\d+$")
SIDE = re.compile(r"mm_encoder\.(?:cv|bert|mm)_adapter_list\.")

# Applied in order, each to the result of the previous one. `@3.query.` is the query projection in block 3 of the image
# backbone. Its place depends on the layout that transformers gives the model (`Places`).
KEY_RULES = [
    # Large parts. K-Adapter wraps the whole backbone and the list of blocks, other adapters wrap single blocks.
    (rf"{TEXT}bert_model\.bert_adapter_list\.", "item_encoder.backbone.k_adapter.adapters."),
    (rf"{TEXT}bert_model\.com_dense\.", "item_encoder.backbone.k_adapter.fusion."),
    (rf"{TEXT}bert_model\.(?:bert_model\.)?", "item_encoder.backbone."),
    (rf"{TEXT}fc\.", "item_encoder.projection."),
    (rf"{IMAGE}(?:vit\.)?encoder\.bert_adapter_list\.", "item_encoder.backbone.k_adapter.adapters."),
    (rf"{IMAGE}(?:vit\.)?encoder\.com_dense\.", "item_encoder.backbone.k_adapter.fusion."),
    (rf"{IMAGE}(?:vit\.)?encoder\.(?:vit_encoder\.)?layer\.(\d+)\.", r"@\1."),
    (rf"{IMAGE}classifier\.|^cv_encoder\.cv_proj\.", "item_encoder.projection."),
    (r"^com_dense\.", "item_encoder.fusion."),
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
    # Parts of a SASRec block, including K-Adapter's own blocks.
    (r"(\.k_adapter\.adapters\.\d+)\.transformer_blocks\.", r"\1.blocks."),
    (r"\.multi_head_attention\.w_Q\.", ".attention.query."),
    (r"\.multi_head_attention\.w_K\.", ".attention.key."),
    (r"\.multi_head_attention\.w_V\.", ".attention.value."),
    (r"\.multi_head_attention\.fc\.", ".attention_output.dense."),
    (r"\.multi_head_attention\.layer_norm\.", ".attention_output.layer_norm."),
    (r"\.feed_forward\.w_1\.", ".up."),
    (r"\.feed_forward\.w_2\.", ".feed_forward_output.dense."),
    (r"\.feed_forward\.layer_norm\.", ".feed_forward_output.layer_norm."),
    # Adapters. A wrapped sub-layer of the backbone keeps its own tensors one level down.
    (r"^(user_encoder\.blocks\.\d+)\.adapter1\.", r"\1.attention_output.dropout.adapter."),
    (r"^(user_encoder\.blocks\.\d+)\.adapter2?\.", r"\1.feed_forward_output.dropout.adapter."),
    (r"^(user_encoder\.blocks\.\d+)\.LN\.", r"\1.feed_forward_output.layer_norm.norm."),
    (r"\.self_output\.", "."),
    (r"^(item_encoder\..*)\.output\.adapter\.", r"\1.output.dropout.adapter."),
    (r"^(item_encoder\..*)\.output\.LN\.", r"\1.output.LayerNorm.norm."),
    (r"\.word_embeddings\.learned_embedding$", ".prompt.vectors"),
    (r"^(item_encoder\.backbone)\.embeddings(\.prompt\.vectors)$", r"\1\2"),
    (r"\.word_embeddings\.wte\.", ".word_embeddings."),
    # Parts of a block of an image backbone.
    (r"^(@\d+)\.attention\.attention\.(query|key|value)\.", r"\1.\2."),
    (r"^(@\d+\.attention)\.output\.dense\.", r"\1.projection."),
    (r"^(@\d+)\.intermediate\.dense\.", r"\1.feed_forward.entry."),
    (r"^(@\d+)\.output\.dense\.", r"\1.feed_forward.projection."),
    (r"^(@\d+)\.output\.adapter\.", r"\1.feed_forward.output.adapter."),
    (r"^(@\d+)\.layernorm_before\.", r"\1.attention.stream."),
    (r"^(@\d+)\.layernorm_after\.", r"\1.feed_forward.stream."),
    # Parts of an adapter.
    (r"\.adapter\.fc_(down|up)\.", r".adapter.\1."),
    (r"\.(down|up)_project\.", r".\1."),
    (r"\.adapter\.(down|up)_sampler\.W_", r".adapter.\1."),
    (r"\.adapter\.(down|up)_sampler\.b$", r".adapter.\1.bias"),
    (r"\.adapter\.(down|up)_sampler\.phm_rule$", r".adapter.\1.rule"),
]

# With a second LayerNorm (Pfeiffer), the adapter is between the two LayerNorms, not after the dropout.
BETWEEN_NORMS = [
    (r"^(item_encoder\..*)\.output\.dropout\.adapter\.", r"\1.output.LayerNorm.adapter."),
    (r"\.feed_forward_output\.dropout\.adapter\.", ".feed_forward_output.layer_norm.adapter."),
]

# The methods for which the original scripts also trained the LayerNorms, by item tower.
LAYERNORM_TRAINED = {"text": {"pfeiffer", "pfeiffer_attention", "compacter"}, "image": set()}

# Tensors that no computation reads: BERT's pooler, the position and token type ids that older releases of transformers
# stored, and the shared copy of Compacter's rule, which every adapter also holds.
UNREAD = re.compile(
    rf"{TEXT}bert_model\.(bert_model\.)?(pooler\.|embeddings\.(position_ids|token_type_ids)$)|^phm_rule$"
)
# Prefixes of all keys of a checkpoint: from DDP, and from the program that shares Compacter's rule.
PREFIX = re.compile(r"^(?:module\.|model\.)+")
ADAPTED = re.compile(r"\.adapter\.|\.lora_[AB]$|\.k_adapter\.|\.prompt\.")


@dataclass(frozen=True)
class Original:
    """The content of an original checkpoint, under our names.

    Attributes:
        tensors: the float32 tensors, by the names that `our_names` returns.
        sizes: item_tower, embedding_dim, max_seq_len and blocks, read from the tensors.
    """

    tensors: dict[str, Tensor]
    sizes: dict[str, Any]

    def tensors_for(self, recommender: Recommender) -> dict[str, Tensor]:
        """Return the tensors by the parameter names of a recommender without a method."""
        places = Places(recommender)
        return {places.name(name): tensor for name, tensor in self.tensors.items()}

    @property
    def has_adapters(self) -> bool:
        return any(ADAPTED.search(name) for name in self.tensors)


class Places:
    """Locates blocks of a recommender's image backbone. Create it before a method is applied; it stays valid after."""

    ROLES = (
        *("query", "key", "value"),
        *("attention.stream", "attention.projection", "attention.output"),
        *("feed_forward.stream", "feed_forward.entry", "feed_forward.projection", "feed_forward.output"),
    )

    def __init__(self, recommender: Recommender):
        self.recommender = recommender
        self.paths: dict[str, str] = {}
        path_of = {module: path for path, module in recommender.named_modules()}
        for tower in recommender.item_encoder.towers:
            if tower.modality != "image" or tower.backbone is None:
                continue
            for number, block in enumerate(view(tower.backbone).blocks):
                for role in self.ROLES:
                    self.paths[f"@{number}.{role}"] = path_of[attrgetter(role)(block).module]

    def name(self, name: str) -> str:
        """Return the name of a parameter in the recommender for a name that `our_names` returns."""
        role = next((role for role in self.paths if name.startswith(f"{role}.")), None)
        if role is None:
            return name
        path, rest = self.paths[role], name.removeprefix(f"{role}.")
        if not _has_submodule(self.recommender, path):
            # A method may have moved the whole backbone.
            path = path.replace("item_encoder.", "item_encoder.encoders.", 1)
        # A layer that an adapter wraps is one level down.
        wrapped = hasattr(self.recommender.get_submodule(path), "inner") and not rest.startswith("adapter.")
        return f"{path}.inner.{rest}" if wrapped else f"{path}.{rest}"


def our_names(keys: Iterable[str]) -> dict[str, str]:
    """Return our parameter name for each original state-dict key that is read; `Places` completes names with @.

    The keys of a tower's gates, one per step, get the same name.
    """
    keys = list(keys)
    rules = KEY_RULES + (BETWEEN_NORMS if any(".LN." in key for key in keys) else [])
    has_side = any(SIDE.search(key) for key in keys)
    names = {}
    for key in keys:
        name = PREFIX.sub("", key)
        side = _renamed(name, SIDE_RULES) if has_side else name
        if side.startswith("side."):
            names[key] = "item_encoder." + GATE.sub(r"\1", side)
            continue
        inner = name.removeprefix("mm_encoder.")
        if UNREAD.search(inner):
            continue
        renamed = _renamed(inner, rules)
        if inner != name:
            tower = "text" if inner.startswith("bert_encoder.") else "image"
            place = f"encoders.{tower}" if has_side else tower
            renamed = re.sub(r"^item_encoder\.", f"item_encoder.{place}.", renamed)
        names[key] = renamed
    return names


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _named_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state dict in float32 by our names, with the gates of each tower in one tensor."""
    keys: dict[str, list[str]] = {}
    for key, name in our_names(state).items():
        keys.setdefault(name, []).append(key)
    steps = _steps(keys)
    tensors = {}
    for name, originals in keys.items():
        side = name.removeprefix(SIDE_PREFIX) if name.startswith(SIDE_PREFIX) else ""
        if side and _is_unread(side, steps):
            continue
        if side.endswith(".gates"):
            read = sorted(originals, key=_last_number)[: steps[side.removesuffix(".gates")]]
            tensors[name] = torch.cat([state[key].reshape(1) for key in read]).float()
        else:
            tensors[name] = state[originals[-1]].float()
    return tensors


def _steps(names: Iterable[str]) -> dict[str, int]:
    """Return the number of steps of each tower of a side network, by the name of the tower.

    The original programs create as many inter-modal steps as the deeper modality has, but run only as many as the
    shallower one has.
    """
    numbers: dict[str, set[str]] = {}
    for name in names:
        tower, _, rest = name.removeprefix(SIDE_PREFIX).partition(".adapters.")
        if rest:
            numbers.setdefault(tower, set()).add(rest.partition(".")[0])
    counts = {tower: len(steps) for tower, steps in numbers.items()}
    fewest = min((count for tower, count in counts.items() if tower != INTER), default=None)
    return {tower: fewest if tower == INTER and fewest else count for tower, count in counts.items()}


def _is_unread(name: str, steps: dict[str, int]) -> bool:
    """Return whether nothing reads a side network's tensor, because its tower has no steps or its step is not run."""
    tower = re.match(r"(?:intra\.\w+|inter)(?=\.)", name)
    if name.startswith("projections."):
        return set(steps) == {INTER}
    if tower is None:
        return False
    of_step = re.match(r"inter\.(?:adapters|align)\.(\d+)\.", name)
    return tower[0] not in steps or (of_step is not None and int(of_step[1]) >= steps[INTER])


def _last_number(key: str) -> int:
    return int(key.rpartition(".")[2])


def read_original(path: Path) -> Original:
    """Read an `epoch-N.pt`, or a .safetensors file with the same state dict.

    Raises TransrecError if the file is missing or damaged, holds anything but tensors and plain containers, or is not a
    recommender of the original programs.
    """
    state = _load_state(path)
    tensors = _named_tensors(state)
    if (prompt := tensors.get("item_encoder.backbone.prompt.vectors")) is not None:
        # Image prompts have an additional batch axis.
        tensors["item_encoder.backbone.prompt.vectors"] = prompt.reshape(prompt.shape[-2:])
    positions = tensors.get("user_encoder.position_embedding.weight")
    if positions is None or positions.dim() != 2:
        raise TransrecError(
            f"{path}: not an original recommender: it has no user_encoder.transformer_encoder.position_embedding"
            + ("; load_side reads a side network alone" if any(SIDE.search(key) for key in state) else "")
        )
    blocks = {name.split(".")[2] for name in tensors if name.startswith("user_encoder.blocks.")}
    sizes = {"max_seq_len": positions.shape[0], "embedding_dim": positions.shape[1], "blocks": len(blocks)}
    roots = {PREFIX.sub("", key).partition(".")[0] for key in state}
    towers = {"mm_encoder": "multimodal", "cv_encoder": "image"}
    return Original(tensors, sizes | {"item_tower": next((towers[root] for root in towers if root in roots), "text")})


def _load_state(path: Path) -> dict[str, Tensor]:
    try:
        with about_file(path, what="cannot read the checkpoint"):
            if path.suffix == ".safetensors":
                safetensors_header(path)
                state = load_file(path)
                checkpoint.check_finite(path, state)
                return state
            check_torch_file(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except EOFError as error:
        raise TransrecError(f"{path}: cannot read the checkpoint ({error})") from error
    except pickle.UnpicklingError as error:
        raise TransrecError(
            f"{path}: damaged, or holds objects other than tensors, which are never unpickled ({reason_of(error)})"
        ) from error
    except (TransrecError, MemoryError):
        raise
    # A pickle that was not written by pickle can raise any exception.
    except Exception as error:
        raise TransrecError(f"{path}: truncated or damaged ({reason_of(error)}); copy it again") from error
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise TransrecError(f"{path}: no model_state_dict of tensors in it")
    for name, tensor in state.items():
        # Sparse, quantised or expanded tensors may declare any size, and training produces none.
        if not _is_plain(tensor):
            raise TransrecError(f"{path}: {name} is not a plain tensor of numbers; save it as one")
    checkpoint.check_finite(path, dict(state))
    return dict(state)


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def load_original(
    path: str | Path,
    text_encoder: str | Path | None = None,
    method: str | None = None,
    variant: str = "published",
    method_options: MethodOptions | None = None,
    objective: str = "bce",
    heads: int = 2,
    dropout: float = 0.1,
    image_encoder: str | Path | None = None,
    mask_ratio: float = 0.0,
) -> Recommender:
    """Return the recommender of an original checkpoint, in eval mode on the CPU in float32.

    Every tensor has a place in the recommender, and every place is filled. If an IISAN checkpoint holds no backbones
    (cached, Versa), the item encoder takes hidden states.

    Args:
        path: `epoch-N.pt`, or a .safetensors file with the same state dict.
        text_encoder, image_encoder: folder or name whose config.json describes the backbone; its weights are not read.
        method: the method of an adapted checkpoint, by its name in `transrec.methods`.
        variant: the variant of the method to compute; the original programs computed "published".
        method_options: the options of the method. If not given, sizes are read from the tensors, and the parameters
            that the original scripts trained are trained.
        objective, heads, dropout: settings that the tensors do not show.
        mask_ratio: share of the patches that MAE masks; the original programs masked 0.75, also in evaluation.

    Raises TransrecError if the file cannot be read, and if a tensor has no place or a place has no tensor.
    """
    path = resolve(path)
    original = read_original(path)
    sizes = original.sizes
    name = method or "full"
    cached = name == "iisan" and not any(".backbone." in key for key in original.tensors)
    options = methods.get(name).Options
    # BitFit and LayerNorm tuning insert nothing.
    if original.has_adapters != (issubclass(options, methods.InsertOptions) and bool(options._tensor_sizes)):
        raise TransrecError(
            f"{path}: holds adapters; say which method with method=..."
            if original.has_adapters
            else f"{path}: holds no adapters, so it is not of method {method!r}"
        )
    recommender = Recommender(
        _item_encoder(path, sizes, {"text": text_encoder, "image": image_encoder}, mask_ratio, cached),
        SASRec(sizes["embedding_dim"], sizes["max_seq_len"], sizes["blocks"], heads, dropout),
        OBJECTIVES.get(objective)(),
    )
    places = Places(recommender)
    options = method_options or _options_from(original, name, variant, places)
    # IISAN's programs have no source pretraining, so projections, fusion and user encoder train with every method.
    scratch = sizes["item_tower"] == "multimodal"
    methods.apply(recommender, name, options, methods.Rates(recommender=1e-4, backbone=5e-5), train_recommender=scratch)
    tensors = {places.name(key): tensor for key, tensor in original.tensors.items()}
    checkpoint.load_into(recommender, path, _without_aliases(tensors, recommender))
    return recommender.eval()


def _item_encoder(
    path: Path, sizes: dict[str, Any], encoders: dict[str, str | Path | None], mask_ratio: float, cached: bool
) -> nn.Module:
    towers = []
    for name in encoders if sizes["item_tower"] == "multimodal" else [sizes["item_tower"]]:
        if (encoder := encoders[name]) is None:
            raise TransrecError(f"{path}: is of a recommender over {name}; say which backbone with {name}_encoder=...")
        modality: BackboneModality = (
            Text(TextOptions(text_encoder=str(encoder)))
            if name == "text"
            else Image(ImageOptions(image_encoder=str(encoder), mask_ratio=mask_ratio))
        )
        make = modality.stored_tower if cached else partial(modality.tower, known={}, draw=True)
        towers.append(make(sizes["embedding_dim"], seed=lambda part: None))
    return make_item_encoder(towers)


def load_side(
    path: str | Path, keep_embedding: bool = True, activation: Literal["relu", "gelu"] = "relu"
) -> SideNetwork:
    """Return the side network of an original IISAN checkpoint, cached or not, in eval mode, without its backbones.

    Args:
        keep_embedding, activation: settings that the tensors do not show.

    Raises TransrecError if the file cannot be read, or holds no side network.
    """
    path = resolve(path)
    state = _load_state(path)
    named = _named_tensors(state)
    tensors = {name.removeprefix(SIDE_PREFIX): t for name, t in named.items() if name.startswith(SIDE_PREFIX)}
    steps = _steps(tensors)
    if not steps:
        raise TransrecError(
            f"{path}: holds no side network (mm_encoder.*_adapter_list); give one of IISAN's checkpoints"
        )
    intra = [modality for modality in ("text", "image") if f"intra.{modality}" in steps]
    if intra:
        widths = {modality: tensors[f"intra.{modality}.end.weight"].shape[1] for modality in intra}
    else:
        widths = _inter_widths(path, state, tensors)
    last = f"projections.{intra[0]}.bias" if intra else "inter.projection.bias"
    options = IISANOptions(
        **IISANOptions.flags_from_tensors(named), side_activation=activation, keep_embedding=keep_embedding
    )
    network = SideNetwork(
        {modality: nn.Linear(width, len(tensors[last])) for modality, width in widths.items()},
        {m: steps[f"intra.{m}" if intra else INTER] + (not keep_embedding) for m in widths},
        options,
    )
    checkpoint.load_into(network, path, tensors)
    return network.eval()


def _inter_widths(path: Path, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the width of each modality's states, for a side network that consists of the inter-modal tower alone.

    Nothing reads the projections in such a checkpoint, but their shapes show which width belongs to which modality.
    """
    narrow = tensors["inter.end.weight"].shape[1]
    wide = tensors["inter.align.0.weight"].shape[1] if "inter.align.0.weight" in tensors else narrow
    if wide == narrow:
        return dict.fromkeys(("text", "image"), narrow)
    shapes = {name: state[key].shape for key, name in our_names(state).items()}
    widths = {m: shapes.get(f"{SIDE_PREFIX}projections.{m}.weight", (0, 0))[1] for m in ("text", "image")}
    if sorted(widths.values()) != [narrow, wide]:
        raise TransrecError(
            f"{path}: holds no projections of {narrow} and {wide} columns, which would tell whether text or image "
            f"states are the wider"
        )
    return widths


def _options_from(original: Original, method: str, variant: str, places: Places) -> MethodOptions:
    """Return the options of an adapted checkpoint, as far as its tensors show them."""
    options = methods.get(method).Options
    values: dict[str, Any] = {}
    towers = set()
    for name_of_flag, (pattern, axis) in getattr(options, "_tensor_sizes", {}).items():
        for name, tensor in original.tensors.items():
            if re.fullmatch(pattern, place := places.name(name)):
                values[name_of_flag] = tensor.shape[axis]
                towers.add(place.partition("_")[0])
    flags = {field.name for field in fields(options)}
    if "insert" in flags and len(towers) == 1:
        values["insert"] = towers.pop()
    values |= options.flags_from_tensors(original.tensors)
    if "variant" in flags:
        values["variant"] = variant
    if "train_layernorm" in flags:
        values["train_layernorm"] = method in LAYERNORM_TRAINED.get(original.sizes["item_tower"], ())
    return options(**values)


def _has_submodule(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _without_aliases(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors without those that repeat a shared parameter under another of its names."""
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
