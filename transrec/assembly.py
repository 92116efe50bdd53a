"""From settings to a recommender: build it, load what it starts from, apply the method, load a finished run."""

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transrec import methods
from transrec.errors import TransrecError
from transrec.methods import TrainableGroup
from transrec.modalities import Modality
from transrec.models import backbone
from transrec.models.items import fusion_order, joined
from transrec.models.recommender import Recommender
from transrec.models.towers import Tower
from transrec.paths import resolve
from transrec.settings import Settings, deciding, read_settings
from transrec.training import checkpoint

# What checkpoints of earlier releases do not say, since there was no other.
SASREC = {"user_encoder": "sasrec"}
# Modules that read checkpoints of other programs, by a file's suffix; each is imported when such a file is given.
READERS = dict.fromkeys((".pt", ".pth", ".bin"), "transrec.interop")


def build_recommender(
    settings: Settings, item_count: int, load_weights: bool = True, sizes: Mapping[str, Any] | None = None
) -> Recommender:
    """A recommender before any checkpoint or method; what is drawn at random follows from the run's seed.

    Args:
        sizes: what a checkpoint says of a finished run.

    Raises TransrecError for an unknown or unfit backbone.
    """
    model, data = settings.model, settings.data
    stored = stored_states(settings)
    towers = {}
    # In one order, whatever the order of --modalities: what is drawn last is followed by the fusion.
    for name in reversed(fusion_order(list(settings.modalities))):
        modality = settings.modalities[name]
        if name in stored:
            towers[name] = modality.stored_tower(model.embedding_dim, partial(_seed, settings))
        else:
            towers[name] = _tower(settings, modality, {"item_count": item_count, **(sizes or {})}, load_weights)
    item_encoder = joined([towers[name] for name in settings.modalities])
    _seed(settings, "user encoder")
    user_encoder = settings.choice("user_encoder").build(model.embedding_dim, data.max_seq_len)
    return Recommender(item_encoder, user_encoder, settings.choice("objective").build())


def _seed(settings: Settings, part: str) -> None:
    """Seed what is drawn for a part: it does not depend on which other parts were drawn before."""
    seed = np.random.SeedSequence([settings.training.seed, zlib.crc32(part.encode())])
    torch.manual_seed(int(seed.generate_state(1)[0]))


def stored_states(settings: Settings) -> dict[str, list[int]]:
    """The states of backbones that a run reads without ever loading the backbones, by modality.

    Those are what a method that chooses states reads under --cached yes.

    Raises TransrecError where backbones give other states in every step.
    """
    if settings.data.cached != "yes":
        return {}
    states = settings.method_options.states({m.name: m.depth for m in settings.modalities.values() if m.encoder})
    for name in states:
        settings.modalities[name].check_states()
    if states and settings.model.backbone_dropout == "on":
        raise TransrecError("--cached yes: not with --backbone_dropout on, which has other states in every step")
    return states


def tower_of(settings: Settings, modality: str) -> Tower:
    """The tower of one modality with its backbone, as --checkpoint left it if there is one.

    Raises TransrecError for an unknown or unfit backbone, and as `load_start`.
    """
    if not settings.run.checkpoint:
        return _tower(settings, settings.modalities[modality], {})
    return next(tower for tower in _whole_start(settings).item_encoder.towers if tower.modality == modality)


def _whole_start(settings: Settings) -> Recommender:
    """What --checkpoint holds, backbones included."""
    plain = Settings.from_stored(settings.as_dict() | {"method": "frozen"})
    recommender = build_recommender(plain, item_count=0)
    load_start(recommender, plain)
    return recommender


def _tower(settings: Settings, modality: Modality, known: Mapping[str, Any], load_weights: bool = True) -> Tower:
    modality.check_length(settings.method_options.extra_tokens)
    draw = settings.model.random_backbone or not load_weights
    return modality.tower(settings.model.embedding_dim, known, partial(_seed, settings), draw)


def check_fit(settings: Settings) -> None:
    """Build and adapt the recommender without memory for its weights, reading nothing but configurations.

    Raises TransrecError where backbones, method and sizes do not fit together.
    """
    with torch.device("meta"):
        apply_method(build_recommender(settings, item_count=1, load_weights=False), settings)


def parameters_left_out(settings: Settings) -> dict[str, int]:
    """How many parameters each backbone has whose states a run reads from files, by modality."""
    return {name: settings.modalities[name].parameter_count for name in stored_states(settings)}


def load_start(recommender: Recommender, settings: Settings) -> None:
    """Load --checkpoint into a recommender without a method; one over stored states takes all but the backbones.

    Raises TransrecError when it is missing, damaged, of other sizes, or of an adapter method.
    """
    if stored_states(settings):
        whole = _whole_start(settings)
        with torch.no_grad():
            for name, parameter in recommender.named_parameters():
                parameter.copy_(whole.get_parameter(name))
    else:
        _load_plain(recommender, settings.run.checkpoint, _sizes(settings))


def _load_plain(
    recommender: Recommender, given: str | Path, sizes: dict[str, Any], above: tuple[Path, ...] = ()
) -> None:
    path = checkpoint_file(given)
    if path in above:
        raise TransrecError(f"{path}: names itself as the base that it was trained on; its description is damaged")
    if path.suffix in READERS:
        original = import_module(READERS[path.suffix]).read_original(path)
        if original.adapted:
            raise TransrecError(f"{path}: holds adapters; --checkpoint takes a recommender without any")
        checkpoint.check_sizes(path, SASREC | original.sizes, sizes)
        checkpoint.load_into(recommender, path, original.tensors_for(recommender))
        return
    tensors, description = checkpoint.read(path)
    if "state" in description:
        raise TransrecError(f"{path}: is a run's state, which only --resume reads; give its run folder")
    base, theirs = description["base"], SASREC | description["sizes"]
    try:
        method = methods.get(description["method"])
    except TransrecError as error:
        raise TransrecError(f"{path}: {error}; if it is of a plugin, give that with --plugin") from error
    if issubclass(method.Options, methods.InsertOptions):
        trained_on = base["checkpoint"] or "the backbone alone"
        raise TransrecError(
            f"{path}: holds only the adapters of method {description['method']}, trained on {trained_on}; "
            f"--checkpoint takes a recommender without adapters"
        )
    for tower in recommender.item_encoder.towers:
        # As a checkpoint of earlier releases says it.
        if tower.modality == "text" and theirs.get("text_pooling") == "auto":
            theirs = theirs | {"text_pooling": backbone.pooling(tower.backbone.config, "auto")}
    checkpoint.check_sizes(path, theirs, sizes)
    if base["frozen_sha256"] and base["checkpoint"]:
        _load_plain(recommender, base["checkpoint"], sizes, (*above, path))
    checkpoint.load_into(recommender, path, tensors, base["frozen_sha256"])


def load_run(folder: str | Path, plugins: Sequence[str | Path] = ()) -> Recommender:
    """The recommender of a finished run at its best epoch, in eval mode on the CPU.

    Builds it as the run did: text encoder, then the run's own --checkpoint if it had one, then the method, then what
    the run trained.

    Args:
        plugins: files that may run, among them all that the run was started with by --plugin.

    Raises TransrecError when the run, a plugin, or the base it needs, is missing or has changed.
    """
    settings = read_settings(folder, plugins)
    path = checkpoint_file(folder)
    tensors, description = checkpoint.read(path)
    base = description["base"]
    # A run that trained everything needs nothing else.
    needs_base = bool(base["frozen_sha256"])
    recommender = build_recommender(settings, description["item_count"], needs_base, description["sizes"])
    if settings.run.checkpoint and needs_base:
        load_start(recommender, settings)
    apply_method(recommender, settings)
    checkpoint.load_into(recommender, path, tensors, base["frozen_sha256"])
    return recommender.eval()


def apply_method(recommender: Recommender, settings: Settings) -> list[TrainableGroup]:
    """Insert the method and decide what trains."""
    _seed(settings, "method")
    choice = settings.training.train_recommender
    train_recommender = choice == "yes" or (choice == "auto" and not settings.run.checkpoint)
    return methods.apply(
        recommender,
        settings.method,
        settings.method_options,
        methods.Rates(recommender=settings.training.lr, backbone=settings.training.backbone_lr),
        train_recommender,
        {"auto": None, "on": True, "off": False}[settings.model.backbone_dropout],
    )


def describe(settings: Settings, recommender: Recommender) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    embeddings = [tower.embedding for tower in recommender.item_encoder.towers if hasattr(tower, "embedding")]
    return {
        "method": settings.method,
        "method_options": settings.method_options.as_dict(),
        "sizes": _sizes(settings),
        "item_count": embeddings[0].num_embeddings - 1 if embeddings else 0,
        "options": deciding(settings.as_dict()),
        "base": {
            "encoders": {name: modality.encoder for name, modality in settings.modalities.items() if modality.encoder},
            "checkpoint": settings.run.checkpoint,
            "frozen_sha256": checkpoint.frozen_fingerprint(recommender, set(checkpoint.trained(recommender))),
        },
    }


def _sizes(settings: Settings) -> dict[str, Any]:
    model, user_encoder = settings.model, settings.choice("user_encoder")
    names = ("item_tower", "embedding_dim", "user_encoder")
    sizes = {name: getattr(model, name) for name in names} | {"max_seq_len": settings.data.max_seq_len}
    sizes |= {name: getattr(user_encoder.options, name) for name in user_encoder.entry.sizes}
    for modality in settings.modalities.values():
        sizes |= modality.sizes
    return sizes


def checkpoint_file(given: str | Path) -> Path:
    """A checkpoint from a run folder or a file. Raises TransrecError when there is none."""
    path = resolve(given)
    if path.is_dir():
        path = path / "checkpoints" / "best.safetensors"
        if not path.exists():
            raise TransrecError(f"{given}: holds no {path.relative_to(resolve(given))}; the run finished no epoch")
    if not path.exists():
        raise TransrecError(f"--checkpoint {given}: no such file or run folder")
    return path
