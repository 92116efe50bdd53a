"""Hidden states of a dataset's items that runs read: use the file that is there, or make it."""

import hashlib
import os
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from transrec.data.features import BackboneFeatures, blocks_ahead
from transrec.data.groups import grouped
from transrec.data.states import BLOCK_ITEMS, TOKENS, DamagedStates, Provenance, StateBuilder, StateFile
from transrec.errors import Interrupted, TransrecError, about_file, about_memory, warn
from transrec.locks import Lock
from transrec.models.backbone import blocks_of
from transrec.models.recommender import Recommender
from transrec.models.towers import BackboneTower, StoredTower, Tower
from transrec.paths import file_sha256, make_folder
from transrec.progress import Bar
from transrec.training.distributed import World
from transrec.training.precision import Precision

CONFIGURATION = "config.json"
WEIGHT_FILES = (CONFIGURATION, "*.safetensors", "*.bin")
# The states that are kept where nothing but what the backbone gives out is read.
OUTPUT = "output"
STATE_CACHE = "give another folder with --state_cache"
LESS_MEMORY = "give fewer --title_tokens or --precision bf16; the blocks that are done are kept"


@dataclass(frozen=True)
class StateCache:
    """The files of hidden states in a folder. Each is made once, by the first run that needs it, and the others wait.

    Attributes:
        folder: made where it is missing.
        world, precision: of the run.
        log: called with a line that says what is about to be made.
    """

    folder: Path
    world: World
    precision: Precision
    log: Callable[[str], None]

    def states(
        self,
        made_of: Provenance,
        shape: tuple[int, int, int],
        features: BackboneFeatures,
        tower: Callable[[], BackboneTower],
    ) -> StateFile:
        """The hidden states of every item of a catalogue.

        A file that is damaged is made again, with a warning: all that it could hold is made of what `made_of` names.

        Args:
            shape: items, or tokens of all items, K, D.
            features: of the whole catalogue, whose items 1..n are its rows.
            tower: gives the backbone to compute them with, where they are to be computed.

        Raises TransrecError when there is no room, or the folder cannot be written.
        """
        world, path = self.world, self.folder / made_of.file_name
        file, _ = _opened(path, made_of, shape)
        if world.any(file is None):
            make_folder(self.folder, "--state_cache")
            # Several runs may start at once: one makes hidden states, the others wait.
            lock = self.folder / f".{path.name}.lock"
            with closing(Lock(lock, wait=True)) if world.is_main else nullcontext():
                world.patient_barrier()
                # Another run may have made the file meanwhile: the main process, which holds the lock, says so for all.
                file, damage = _opened(path, made_of, shape) if world.is_main else (None, None)
                if damage:
                    warn(f"{damage.args[0].removesuffix('; delete it, it is made again')}; it is made again")
                if world.any(world.is_main and file is None):
                    bounds = token_bounds(features, shape[0]) if _is_of_tokens(made_of) else None
                    builder = StateBuilder(path, shape, made_of.dtype, made_of.as_dict(), bounds)
                    self._make(builder, made_of, features, tower)
            file = StateFile(path, made_of.deciding())
        # Others may read a folder that this process cannot write.
        with suppress(OSError):
            os.utime(path)
        return file

    def _make(
        self,
        builder: StateBuilder,
        made_of: Provenance,
        features: BackboneFeatures,
        tower: Callable[[], BackboneTower],
    ) -> None:
        world = self.world
        if world.is_main:
            with about_file(builder.path, STATE_CACHE):
                done = builder.begin()
            size = builder.shape[0] * builder.row_bytes / 2**20
            what = "outputs" if made_of.states == OUTPUT else f"{builder.shape[1]} states"
            if _is_of_tokens(made_of):
                what = f"states of the {builder.shape[0]:,} tokens"
            items = f"{what} of {len(features):,} items"
            self.log(f"caching     {made_of.modality}: {items}, {size:,.0f} MiB, to {builder.path}")
            if done:
                self.log(f"continuing  {done:,} of {len(builder.blocks):,} blocks are there")
        world.patient_barrier()
        with about_memory("computing hidden states", LESS_MEMORY):
            self._fill(builder, made_of, features, tower)
        world.patient_barrier()
        if world.is_main:
            with about_file(builder.path, STATE_CACHE):
                builder.finish()
        world.patient_barrier()

    @torch.no_grad()
    def _fill(
        self,
        builder: StateBuilder,
        made_of: Provenance,
        features: BackboneFeatures,
        tower: Callable[[], BackboneTower],
    ) -> None:
        world, modality = self.world, made_of.modality
        with about_file(builder.path, STATE_CACHE, "cannot be read"):
            waiting = builder.waiting(world.rank, world.size)
        if not waiting:
            return
        read_states = _reader(tower().to(world.device).eval(), made_of.states, features)
        firsts = [BLOCK_ITEMS * builder.blocks.index(row) for row in waiting]
        work = blocks_ahead(firsts, BLOCK_ITEMS, len(features), features)
        share = len(builder.blocks[world.rank :: world.size])
        done = share - len(waiting)
        bar = Bar(work, total=len(waiting), desc=f"cache {modality}", unit="block", disable=not world.is_main)
        try:
            for items, read in bar:
                with self.precision.autocast():
                    states = read_states(items, read)
                builder.put(builder.blocks[int(items[0] - 1) // BLOCK_ITEMS], states)
                done += 1
        except Interrupted as stop:
            of_whom = " of this process" if world.size > 1 else ""
            kept = f"{done:,} of {share:,} blocks of {modality} states{of_whom} are kept"
            stop.advice = f"{kept}, the same command continues"
            raise


def _is_of_tokens(made_of: Provenance) -> bool:
    return str(made_of.states).startswith(TOKENS)


def token_lengths(features: BackboneFeatures, longest: int) -> np.ndarray:
    """How many tokens each of the items 1..n has, int64 [n]; of features that are all alike, `longest`."""
    lengths = features.host_lengths
    return np.full(len(features), longest) if lengths is None else lengths.astype(np.int64)


def token_bounds(features: BackboneFeatures, rows: int) -> list[int]:
    """The first row of each block of items in a file with a row for each of so many tokens, and behind them `rows`."""
    ends = np.cumsum(token_lengths(features, rows // len(features)))
    return [0, *ends[BLOCK_ITEMS - 1 : -1 : BLOCK_ITEMS].tolist(), int(ends[-1])]


def _reader(
    encoder: BackboneTower, states: list[int] | str, features: BackboneFeatures
) -> Callable[[Tensor, tuple[Tensor, ...]], Tensor]:
    """What is kept of items int64 [N], of which this was read: [N, K, D], or of their tokens [tokens, 1, D]."""
    if states == OUTPUT:
        return lambda items, read: grouped(features, items, read).encoded(encoder.read_out).unsqueeze(1)
    if isinstance(states, list):
        encoder.states = states
        return lambda items, read: grouped(features, items, read).encoded(encoder.read)
    block = int(states.removeprefix(TOKENS))

    def read_tokens(items: Tensor, read: tuple[Tensor, ...]) -> Tensor:
        hidden = encoder.token_states(block, *features.inputs(items, read))
        lengths = torch.from_numpy(token_lengths(features, hidden.shape[1])[items.numpy() - 1])
        used = torch.arange(hidden.shape[1]) < lengths.unsqueeze(1)
        return hidden[used.to(hidden.device)].unsqueeze(1)

    return read_tokens


def _opened(
    path: Path, made_of: Provenance, shape: tuple[int, int, int]
) -> tuple[StateFile | None, DamagedStates | None]:
    """The file, or None with what is wrong with it, if it is there."""
    if not path.exists():
        return None, None
    try:
        file = StateFile(path, made_of.deciding())
        if file.states.shape != shape:
            raise DamagedStates(f"{path}: has states {list(file.states.shape)}, not {list(shape)}")
        return file, None
    except DamagedStates as damage:
        return None, damage


def structure(backbone: nn.Module) -> list[tuple]:
    """What would differ if anything were inserted into the backbone, or changed how it computes."""
    return [
        (name, id(type(module)), len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for name, module in backbone.named_modules()
    ]


def why_not_constant(tower: Tower, before: list[tuple]) -> str:
    """Why a tower's backbone gives other states in every step; "" where it always gives the same.

    Args:
        before: `structure` of its backbone before the method was applied.
    """
    backbone = tower.backbone
    if tower.trains_inside:
        return f"parameters inside the {tower.modality} encoder train"
    if structure(backbone) != before:
        return f"the method changes the {tower.modality} encoder"
    return _why_not_fixed(tower)


def _why_not_fixed(tower: Tower) -> str:
    """Why even an unchanged backbone would give other states in every step, or no states; "" where it would not."""
    if not tower.states:
        return f"{tower.stateless} have no hidden states"
    if tower.backbone_dropout:
        return f"the {tower.modality} encoder's dropout is on (--backbone_dropout)"
    if ratio := getattr(tower.backbone.config, "mask_ratio", 0):
        return f"--mask_ratio {ratio:g} draws other patches each time"
    return ""


@dataclass(frozen=True)
class ConstantBlocks:
    """The first blocks of a backbone whose last ones a method changes.

    Attributes:
        count: how many give the same in every step; at least one.
        tokens: how many of an item they read: T.
        besides: what such a block gives out beside its hidden states, in a tuple; None where it gives no tuple.
        others: gives the inputs that the backbone still needs, of items int64 [N] on the host.
    """

    count: int
    tokens: int
    besides: tuple | None
    others: Callable[[Tensor], tuple[Tensor, ...]]


def constant_blocks(tower: Tower, before: list[tuple], features: BackboneFeatures) -> ConstantBlocks | None:
    """The first blocks of a tower's backbone that a method has left as they were, and whatever stands before them.

    None where there are none, or where they cannot be left out.

    Args:
        before: `structure` of the backbone before the method was applied.
        features: what the tower is given; of the first item it is read to see what runs in front of the blocks.
    """
    backbone, same = tower.backbone, set(before)
    blocks = list(blocks_of(backbone))
    # A block that several layers share cannot be left out of some.
    if _why_not_fixed(tower) or tower.projection is None or not 1 < len(blocks) == tower.depth:
        return None
    names = {module: name for name, module in backbone.named_modules()}
    touched = {entry[0] for entry in structure(backbone) if entry not in same}
    touched |= {name.rpartition(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    own = [f"{names[block]}." for block in blocks]
    of_touched = (n for n, block in enumerate(own) if any(f"{name}.".startswith(block) for name in touched))
    count = next(of_touched, len(blocks) - 1)
    if not count or not hasattr(features, "digest"):
        return None
    first = features.inputs(torch.ones(1, dtype=torch.int64))
    in_front, outputs = [], []
    hooks = [
        module.register_forward_pre_hook(lambda module, _: in_front.append(names[module]))
        for module in names
        if not any(module in block.modules() for block in blocks)
    ]
    hooks.append(blocks[0].register_forward_hook(lambda *called: outputs.append(called[-1])))
    try:
        tokens = tower.token_states(1, *first).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    besides = outputs[0][1:] if isinstance(outputs[0], tuple) else None
    if touched & set(in_front) or any(isinstance(value, Tensor) for value in besides or ()):
        return None
    # Masks follow from the items' own inputs; without masks those of any item do.
    others = (lambda items: first) if features.host_lengths is None else features.inputs
    return ConstantBlocks(count, tokens, besides, others)


def replace_tower(recommender: Recommender, tower: Tower) -> None:
    """Replace the tower that runs a backbone by one that reads the backbone's stored states."""
    # Drawing nothing: the projection, where the tower still has it, stays.
    with torch.device("meta"):
        stored = StoredTower(tower.modality, tower.embedding_dim, tower.width, len(tower.states), tower.depth)
    stored.projection = tower.projection
    for module in list(recommender.modules()):
        for name, child in list(module.named_children()):
            if child is tower:
                setattr(module, name, stored)


def weights_digest(name: str, config, seed: int | None = None) -> str:
    """What decides a backbone's weights: of a folder its files, of a hub name the commit that was loaded.

    Args:
        config: of the backbone.
        seed: of weights that are drawn at random; only the configuration counts then.

    Raises FileError for a file that cannot be read, TransrecError for a hub model of unknown commit.
    """
    folder, drawn = Path(name), f" drawn by seed {seed}" if seed is not None else ""
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        if commit is None:
            raise TransrecError(f"{name}: no folder, and the hub told no commit; put it into pretrained_models/")
        return f"{name} {commit}{drawn}"
    patterns = (CONFIGURATION,) if drawn else WEIGHT_FILES
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    hashes = " ".join(f"{file.name} {file_sha256(file)}" for file in files)
    return hashlib.sha256(hashes.encode()).hexdigest() + drawn
