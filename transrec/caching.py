"""Hidden states of a dataset's items for cached side networks: use the file that is there, or make it."""

import hashlib
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch

from transrec import assembly
from transrec.data.dataset import Dataset
from transrec.data.features import Features, blocks_ahead
from transrec.data.states import BLOCK_ITEMS, StateBuilder, StateFile
from transrec.errors import Interrupted, TransrecError, about_file, about_memory
from transrec.locks import Lock
from transrec.modalities import BackboneModality
from transrec.models import backbone
from transrec.paths import file_sha256, make_folder
from transrec.progress import Bar
from transrec.settings import Settings
from transrec.training.distributed import World
from transrec.training.precision import Precision

WEIGHT_FILES = ("config.json", "*.safetensors", "*.bin")
STATE_CACHE = "give another folder with --state_cache"
LESS_MEMORY = "give fewer --title_tokens or --precision bf16; the blocks that are done are kept"


def hidden_states(
    settings: Settings,
    dataset: Dataset,
    modality: BackboneModality,
    features: Features,
    world: World,
    precision: Precision,
    log: Callable[[str], None],
) -> StateFile:
    """The hidden states of every item of the catalogue; computed first where there are none of it yet.

    Args:
        features: of the whole catalogue, whose items 1..n are its rows.
        log: called with a line that says what is about to be done.

    Raises TransrecError when there is a file that was made of something else or is damaged, and when there is no room.
    """
    options, name, config, content = settings.method_options, modality.encoder, modality.config, modality.name
    states = assembly.stored_states(settings)[content]
    made_of = _made_of(settings, dataset, content, config, features, states, precision)
    folder = Path(options.state_cache) if options.state_cache else dataset.catalog.path.parent / ".transrec"
    which = f"-{made_of['checkpoint'][:12]}" if made_of["checkpoint"] else ""
    path = folder / f"states-{content}-{Path(name).name}{which}.safetensors"
    shape = (len(dataset.catalog.ids), len(states), config.hidden_size)
    if world.any(not path.exists()):
        make_folder(folder, "--state_cache")
        builder = StateBuilder(path, shape, options.state_dtype, made_of)
        # Several runs may start at once: one makes hidden states, the others wait.
        with closing(Lock(folder / ".lock", wait=True)) if world.is_main else nullcontext():
            world.patient_barrier()
            # Another run may have made the file meanwhile: the main process, which holds the folder, says so for all.
            if world.any(world.is_main and not path.exists()):
                if world.is_main:
                    with about_file(path, STATE_CACHE):
                        done = builder.begin()
                    size = shape[0] * builder.row_bytes / 2**20
                    items = f"{len(states)} states of {shape[0]:,} items"
                    log(f"caching     {content}: {items}, {size:,.0f} MiB, to {path}")
                    if done:
                        log(f"continuing  {done:,} of {len(builder.blocks):,} blocks are there")
                world.patient_barrier()
                with about_memory("computing hidden states", LESS_MEMORY):
                    _fill(builder, settings, content, states, features, world, precision)
                world.patient_barrier()
                if world.is_main:
                    with about_file(path, STATE_CACHE):
                        builder.finish()
                world.patient_barrier()
    file = StateFile(path, made_of)
    if file.states.shape != shape:
        raise TransrecError(
            f"{path}: has states {list(file.states.shape)}, not {list(shape)}; delete it, it is made again"
        )
    return file


@torch.no_grad()
def _fill(
    builder: StateBuilder,
    settings: Settings,
    content: str,
    states: list[int],
    features: Features,
    world: World,
    precision: Precision,
) -> None:
    with about_file(builder.path, STATE_CACHE, "cannot be read"):
        waiting = builder.waiting(world.rank, world.size)
    if not waiting:
        return
    tower = assembly.tower_of(settings, content).to(world.device).eval()
    tower.states = states
    work = blocks_ahead(waiting, BLOCK_ITEMS, builder.shape[0], features)
    share = len(builder.blocks[world.rank :: world.size])
    done = share - len(waiting)
    bar = Bar(work, total=len(waiting), desc=f"cache {content}", unit="block", disable=not world.is_main)
    try:
        for items, read in bar:
            with precision.autocast():
                read_states = tower.read(*features.inputs(items, read))
            builder.put(int(items[0]) - 1, read_states)
            done += 1
    except Interrupted as stop:
        of_whom = " of this process" if world.size > 1 else ""
        stop.advice = f"{done:,} of {share:,} blocks of {content} states{of_whom} are kept, the same command continues"
        raise


def _made_of(
    settings: Settings,
    dataset: Dataset,
    content: str,
    config,
    features: Features,
    states: list[int],
    precision: Precision,
) -> dict[str, Any]:
    model, data = settings.model, settings.data
    name = settings.modalities[content].encoder
    made_of: dict[str, Any] = {
        "modality": content,
        "checkpoint": file_sha256(assembly.checkpoint_file(given)) if (given := settings.run.checkpoint) else None,
        "backbone": f"random, seed {settings.training.seed}" if model.random_backbone else _weights_hash(name, config),
        "states": states,
        "dtype": settings.method_options.state_dtype,
        "precision": precision.name,
        "items": _hash("\n".join(dataset.catalog.ids)),
    }
    if content == "text":
        return made_of | {
            "titles": _hash("\n".join(dataset.catalog.texts)),
            "tokens": hashlib.sha256(features.input_ids.cpu().numpy().tobytes()).hexdigest(),
            "title_tokens": data.title_tokens,
            "lower_case": data.lower_case,
            "pooling": backbone.pooling(config, model.text_pooling),
        }
    preprocessing = backbone.load_preprocessing(name, config)
    return made_of | {
        "images": features.store.content_hash,
        "size": preprocessing.size,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "mask_ratio": model.mask_ratio,
        # Not in files of backbones with a [CLS], which are those of earlier releases.
        **({"pooling": where} if (where := backbone.image_pooling(config)) != "cls" else {}),
    }


def _weights_hash(name: str, config) -> str:
    """Of a folder its configuration and weights; of a hub name the commit that was loaded."""
    folder = Path(name)
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        if commit is None:
            raise TransrecError(f"{name}: no folder, and the hub told no commit; put it into pretrained_models/")
        return f"{name} {commit}"
    files = sorted({file for pattern in WEIGHT_FILES for file in folder.glob(pattern)})
    return _hash(" ".join(f"{file.name} {file_sha256(file)}" for file in files))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
