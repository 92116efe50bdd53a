"""Turns a plan into a recommender: builds it, loads the weights that it starts from, and applies the method."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from transrec import methods
from transrec.errors import TransrecError
from transrec.methods import TrainableGroup
from transrec.modalities import Modality
from transrec.models import backbone
from transrec.models.held import DTYPES, check_trainable_dtypes, compute_in_float32, store_in_dtype, stored_dtype
from transrec.models.items import FusedItemEncoder, fusion_order, make_item_encoder
from transrec.models.quantised import quantisation
from transrec.models.recommender import Recommender
from transrec.models.spread import check_accelerate, memory_limits
from transrec.models.towers import Tower, backbone_towers
from transrec.options import ModelOptions, TrainingOptions
from transrec.paths import resolve
from transrec.registry import Choice
from transrec.seeds import seed
from transrec.training import checkpoint

# Checkpoints of earlier releases do not name the user encoder, because SASRec was the only one.
SASREC = {"user_encoder": "sasrec"}
# Modules that read checkpoints of other programs, by file suffix. Each is imported only when such a file is given.
READERS = dict.fromkeys((".pt", ".pth", ".bin"), "transrec.interop")


@dataclass(frozen=True)
class Plan:
    """The parts of a recommender, the weights that it starts from, and what trains.

    Attributes:
        method, user_encoder, objective: registered entries with the values of their flags.
        modalities: the modalities that the recommender reads, by name.
        checkpoint: the checkpoint to start from; None: pretrained backbones, and all other weights drawn at random.
        max_seq_len: L, the length of the longest sequence.
        cached: the value of --cached.
    """

    method: Choice
    user_encoder: Choice
    objective: Choice
    modalities: Mapping[str, Modality]
    model: ModelOptions
    training: TrainingOptions
    checkpoint: str | None
    max_seq_len: int
    cached: str


def build_recommender(
    plan: Plan, item_count: int, load_weights: bool = True, sizes: Mapping[str, Any] | None = None
) -> Recommender:
    """Build a recommender, without loading a checkpoint or applying a method. The run's seed decides random weights.

    Args:
        sizes: the `Description.sizes` of a finished run's checkpoint, if there is one.

    Raises TransrecError for an unknown or unsuitable backbone.
    """
    model = plan.model
    stored = stored_states(plan)
    device_map_arguments(plan)
    # Weights from --checkpoint are loaded in float32.
    dtypes = {} if plan.checkpoint and load_weights else _held_dtypes(plan)
    towers = {}
    # Always in the same order, because the fusion draws its weights from the RNG as the last tower leaves it.
    for name in reversed(fusion_order(list(plan.modalities))):
        modality = plan.modalities[name]
        if name in stored:
            towers[name] = modality.stored_tower(model.embedding_dim, partial(seed, plan.training.seed))
        else:
            known = {"item_count": item_count, **(sizes or {}), "encoder_dtype": dtypes.get(name, torch.float32)}
            towers[name] = _tower(plan, modality, known, load_weights)
    item_encoder = make_item_encoder([towers[name] for name in plan.modalities])
    seed(plan.training.seed, "user encoder")
    user_encoder = plan.user_encoder.build(model.embedding_dim, plan.max_seq_len)
    recommender = Recommender(item_encoder, user_encoder, plan.objective.build())
    if model.init == "normal":
        _draw_normal(plan, recommender)
    return recommender


def _draw_normal(plan: Plan, recommender: Recommender) -> None:
    """Draw linear layers and embeddings outside backbones again, from N(0, --init_std) instead of Xavier-normal."""
    parts: dict[str, nn.Module] = {tower.modality: tower for tower in recommender.item_encoder.towers}
    parts["user encoder"] = recommender.user_encoder
    if isinstance(recommender.item_encoder, FusedItemEncoder):
        parts["fusion"] = recommender.item_encoder.fusion
    for part, root in parts.items():
        for name, module in root.named_modules():
            if name.split(".")[0] == "backbone" or not isinstance(module, nn.Linear | nn.Embedding):
                continue
            seed(plan.training.seed, f"{part} {name}, normal")
            with torch.no_grad():
                module.weight.normal_(0, plan.model.init_std)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx] = 0
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()


def stored_states(plan: Plan) -> dict[str, list[int]]:
    """Return the backbone states that a run reads from files without ever loading the backbones, by modality.

    Under --cached yes, these are the states that the method chooses, if it chooses any; otherwise there are none.

    Raises TransrecError if the backbones give different states in every step.
    """
    if plan.cached != "yes":
        return {}
    states = plan.method.options.states({m.name: m.depth for m in plan.modalities.values() if m.encoder})
    for name in states:
        plan.modalities[name].check_states()
    if states and plan.model.backbone_dropout == "on":
        raise TransrecError("--cached yes: not with --backbone_dropout on, whose states differ in every step")
    return states


def tower_of(plan: Plan, modality: str) -> Tower:
    """Return the tower of one modality with its backbone, which has the weights of --checkpoint if there is one.

    Raises TransrecError for an unknown or unsuitable backbone, and for the same reasons as `load_start`.
    """
    if not plan.checkpoint:
        known = {"encoder_dtype": _held_dtypes(plan)[modality], "spread": device_map_arguments(plan)}
        return _tower(plan, plan.modalities[modality], known)
    return next(tower for tower in _start_with_backbones(plan).item_encoder.towers if tower.modality == modality)


def _held_dtypes(plan: Plan) -> dict[str, torch.dtype]:
    """Return the dtype in which the weights of each backbone are held, by modality."""
    encoders = {name: modality.encoder for name, modality in plan.modalities.items() if modality.encoder}
    for name, encoder in encoders.items():
        if quantisation(plan.modalities[name].config, encoder):
            _check_unchanged(plan, encoder)
    if plan.model.encoder_dtype != "auto":
        return dict.fromkeys(encoders, DTYPES[plan.model.encoder_dtype])
    # Under --compile, every layer that widens its weights would be compiled as a separate piece.
    if plan.checkpoint or plan.model.random_backbone or plan.training.compile or _changes_backbones(plan):
        return dict.fromkeys(encoders, torch.float32)
    return {name: stored_dtype(encoder) for name, encoder in encoders.items()}


def device_map_arguments(plan: Plan) -> dict[str, Any]:
    """Return the arguments with which transformers spreads a backbone over devices; empty without --device_map.

    Raises TransrecError if the run does not compute all states before its first step, if the weights come from
    --checkpoint or --random_backbone, and if accelerate is not installed.
    """
    model = plan.model
    if model.device_map == "none":
        return {}
    what = f"--device_map {model.device_map}"
    if not stored_states(plan):
        raise TransrecError(
            f"{what}: spreads frozen backbones while states are computed, and --method {plan.method.name} with "
            f"--cached {plan.cached} runs or trains them itself; use iisan with --cached yes"
        )
    if plan.checkpoint or model.random_backbone:
        other = "--checkpoint" if plan.checkpoint else "--random_backbone"
        raise TransrecError(f"{what}: spreads what a weights file holds; leave out {other}")
    check_accelerate()
    return {"device_map": model.device_map} | (
        {"max_memory": memory_limits(model.max_memory)} if model.max_memory else {}
    )


def _changes_backbones(plan: Plan) -> bool:
    """Return whether the method trains any part of the backbones, or inserts anything into them."""
    options = plan.method.options
    inserts = isinstance(options, methods.InsertOptions) and not options.insert.startswith("user")
    return inserts or plan.method.entry.trains_backbone


def _check_unchanged(plan: Plan, encoder: str) -> None:
    """Raise TransrecError if a run would change or replace quantised weights, or insert anything between them."""
    what = f"{encoder}: its weights are quantised, "
    if plan.model.encoder_dtype != "auto":
        raise TransrecError(f"{what}and are held as they are; leave out --encoder_dtype {plan.model.encoder_dtype}")
    if plan.model.random_backbone:
        raise TransrecError(
            f"{what}and cannot be drawn at random (--random_backbone); give the model without quantisation"
        )
    if plan.model.backbone_dropout == "on":
        raise TransrecError(f"{what}and run without dropout; leave out --backbone_dropout on")
    if _changes_backbones(plan):
        raise TransrecError(
            f"{what}and --method {plan.method.name} changes the encoder; use frozen, iisan or --insert user, or give "
            f"the model without quantisation"
        )


def rounding_suffix(plan: Plan, modality: str) -> str:
    """Return a suffix for the digest of weights that --encoder_dtype rounds; "" if they stay as stored."""
    chosen = DTYPES.get(plan.model.encoder_dtype, torch.float32)
    drawn = plan.checkpoint or plan.model.random_backbone
    if chosen == torch.float32 or (not drawn and stored_dtype(plan.modalities[modality].encoder) == chosen):
        return ""
    return f" rounded to {plan.model.encoder_dtype}"


def _start_with_backbones(plan: Plan) -> Recommender:
    """Return the recommender that --checkpoint holds, backbones included."""
    plain = replace(plan, method=Choice("frozen", methods.get("frozen"), methods.MethodOptions()))
    recommender = build_recommender(plain, item_count=0)
    load_start(recommender, plain)
    return recommender


def _tower(plan: Plan, modality: Modality, known: Mapping[str, Any], load_weights: bool = True) -> Tower:
    modality.check_length(plan.method.options.extra_tokens)
    draw = plan.model.random_backbone or not load_weights
    return modality.tower(plan.model.embedding_dim, known, partial(seed, plan.training.seed), draw)


def check_fit(plan: Plan) -> None:
    """Build the recommender and apply the method, without memory for weights: only configurations are read.

    Raises TransrecError if backbones, method and sizes do not fit together.
    """
    with torch.device("meta"):
        apply_method(build_recommender(plan, item_count=1, load_weights=False), plan)


def parameters_left_out(plan: Plan) -> dict[str, int]:
    """Return the number of parameters of each backbone whose states a run reads from files, by modality."""
    return {name: plan.modalities[name].parameter_count for name in stored_states(plan)}


def load_start(recommender: Recommender, plan: Plan) -> None:
    """Load --checkpoint into a recommender without a method, leaving out the backbones if it reads stored states.

    Raises TransrecError if the checkpoint is missing, damaged, of other sizes, or of an adapter method.
    """
    if stored_states(plan):
        whole = _start_with_backbones(plan)
        with torch.no_grad():
            for name, parameter in recommender.named_parameters():
                parameter.copy_(whole.get_parameter(name))
    else:
        _load_plain(recommender, plan.checkpoint, _sizes(plan))
        dtypes = _held_dtypes(plan)
        for tower in backbone_towers(recommender.item_encoder.towers):
            store_in_dtype(tower.backbone, dtypes[tower.modality])


def encoder_warnings(plan: Plan) -> list[str]:
    """Return a warning for each modality whose encoder is named unlike the one that --checkpoint was trained over.

    The checkpoint's weights are used in any case, and they fit if both encoders are of the same sizes.
    """
    path = checkpoint_file(plan.checkpoint) if plan.checkpoint else None
    if path is None or path.suffix in READERS:
        return []
    return [
        f"{plan.checkpoint} was trained over the {name} encoder {trained}; its weights are used, but items are "
        f"prepared for {plan.modalities[name].encoder} (tokenizer, image preprocessing)"
        for name, trained in checkpoint.describe(path).base.encoders.items()
        if name in plan.modalities and Path(trained).name != Path(plan.modalities[name].encoder).name
    ]


def _load_plain(
    recommender: Recommender, run_or_file: str | Path, sizes: dict[str, Any], descendants: tuple[Path, ...] = ()
) -> None:
    path = checkpoint_file(run_or_file)
    if path in descendants:
        raise TransrecError(f"{path}: names itself as the base that it was trained on; its description is damaged")
    if path.suffix in READERS:
        original = import_module(READERS[path.suffix]).read_original(path)
        if original.has_adapters:
            raise TransrecError(f"{path}: holds adapters; --checkpoint takes a recommender without any")
        checkpoint.check_sizes(path, SASREC | original.sizes, sizes)
        checkpoint.load_into(recommender, path, original.tensors_for(recommender))
        return
    tensors, description = checkpoint.read(path)
    if description.state is not None:
        raise TransrecError(f"{path}: is a run's state, which only --resume reads; give its run folder")
    base, stored_sizes = description.base, SASREC | description.sizes
    try:
        method = methods.get(description.method)
    except TransrecError as error:
        raise TransrecError(f"{path}: {error}; if it is of a plugin, give that with --plugin") from error
    if issubclass(method.Options, methods.InsertOptions):
        trained_on = base.checkpoint or "the backbone alone"
        raise TransrecError(
            f"{path}: holds only the adapters of method {description.method}, trained on {trained_on}; "
            f"--checkpoint takes a recommender without adapters"
        )
    for tower in recommender.item_encoder.towers:
        # Checkpoints of earlier releases may say "auto".
        if tower.modality == "text" and stored_sizes.get("text_pooling") == "auto":
            stored_sizes = stored_sizes | {"text_pooling": backbone.pooling(tower.backbone.config, "auto")}
    checkpoint.check_sizes(path, stored_sizes, sizes)
    if base.frozen_sha256 and base.checkpoint:
        _load_plain(recommender, base.checkpoint, sizes, (*descendants, path))
    checkpoint.load_into(recommender, path, tensors, base.frozen_sha256)


def apply_method(recommender: Recommender, plan: Plan) -> list[TrainableGroup]:
    """Apply the method and return the parameters that train, in groups."""
    seed(plan.training.seed, "method")
    choice = plan.training.train_recommender
    if choice == "no" and methods.METHODS.get(plan.method.name).trains_recommender:
        raise TransrecError(f"--train_recommender no: --method {plan.method.name} always trains it; leave the flag out")
    train_recommender = choice == "yes" or (choice == "auto" and not plan.checkpoint)
    groups = methods.apply(
        recommender,
        plan.method.name,
        plan.method.options,
        methods.Rates(recommender=plan.training.lr, backbone=plan.training.backbone_lr),
        train_recommender,
        {"auto": None, "on": True, "off": False}[plan.model.backbone_dropout],
    )
    for tower in backbone_towers(recommender.item_encoder.towers):
        check_trainable_dtypes(tower.backbone, tower.modality)
        # The method may have replaced layers by its own, which now hold those weights.
        compute_in_float32(tower.backbone)
    return groups


def describe(plan: Plan, recommender: Recommender, options: dict[str, Any]) -> checkpoint.Description:
    """Return the description that a checkpoint carries; `options` are the run's options that decide its numbers."""
    embeddings = [tower.embedding for tower in recommender.item_encoder.towers if hasattr(tower, "embedding")]
    return checkpoint.Description(
        method=plan.method.name,
        method_options=plan.method.options.as_dict(),
        sizes=_sizes(plan),
        item_count=embeddings[0].num_embeddings - 1 if embeddings else 0,
        base=checkpoint.Base(
            checkpoint=plan.checkpoint,
            frozen_sha256=checkpoint.frozen_fingerprint(recommender, set(checkpoint.trained(recommender))),
            encoders={name: modality.encoder for name, modality in plan.modalities.items() if modality.encoder},
        ),
        options=options,
    )


def _sizes(plan: Plan) -> dict[str, Any]:
    model, user_encoder = plan.model, plan.user_encoder
    names = ("item_tower", "embedding_dim", "user_encoder")
    sizes = {name: getattr(model, name) for name in names} | {"max_seq_len": plan.max_seq_len}
    sizes |= {name: getattr(user_encoder.options, name) for name in user_encoder.entry.sizes}
    for modality in plan.modalities.values():
        sizes |= modality.sizes
    return sizes


def checkpoint_file(run_or_file: str | Path) -> Path:
    """Return the path of a checkpoint, given as a run folder or a file. Raises TransrecError if there is none."""
    path = resolve(run_or_file)
    if path.is_dir():
        path = path / "checkpoints" / "best.safetensors"
        if not path.exists():
            raise TransrecError(
                f"{run_or_file}: holds no {path.relative_to(resolve(run_or_file))}: no epoch ended, or it was removed"
            )
    if not path.exists():
        raise TransrecError(f"--checkpoint {run_or_file}: no such file or run folder")
    return path
