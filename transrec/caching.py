"""The cache of hidden states of a dataset's items: a run uses an existing file, or computes a new one."""

import hashlib
import os
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from transrec.data.features import BackboneFeatures, read_blocks_ahead
from transrec.data.groups import group_inputs
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
# Value of `Provenance.states` if only the backbone's output is cached.
OUTPUT = "output"
STATE_CACHE = "give another folder with --state_cache"
LESS_MEMORY = "give fewer --title_tokens or --precision bf16; the blocks that are done are kept"


@dataclass(frozen=True)
class StateCache:
    """The files of hidden states in a folder. The first run that needs a file computes it; other runs wait for it.

    Attributes:
        folder: the folder of the files, which is created if it is missing.
        world, precision: those of the run.
        log: a function that is called with a line about what is going to be computed.
    """

    folder: Path
    world: World
    precision: Precision
    log: Callable[[str], None]

    def states(
        self,
        provenance: Provenance,
        shape: tuple[int, int, int],
        features: BackboneFeatures,
        tower: Callable[[], BackboneTower],
    ) -> StateFile:
        """Return the hidden states of every item of a catalogue, from a file that is written first if it is missing.

        A damaged file is computed again, with a warning: `provenance` names everything that its states depend on.

        Args:
            shape: (items, K, D), or (tokens of all items, K, D).
            features: the features of the complete catalogue, whose rows are the items 1..n.
            tower: returns the tower that computes the states; called only if there are states to compute.

        Raises TransrecError if there is no room, or the folder cannot be written.
        """
        world, path = self.world, self.folder / provenance.file_name
        file, _ = _open_states(path, provenance, shape)
        if world.any(file is None):
            make_folder(self.folder, "--state_cache")
            # Several runs may start at once: one computes the hidden states, the others wait.
            lock = self.folder / f".{path.name}.lock"
            with closing(Lock(lock, wait=True)) if world.is_main else nullcontext():
                world.patient_barrier()
                # Another run may have written the file by now. The main process, which holds the lock, checks for all.
                file, damage = _open_states(path, provenance, shape) if world.is_main else (None, None)
                if damage:
                    warn(f"{damage.fault}; it is made again")
                if world.any(world.is_main and file is None):
                    bounds = token_bounds(features, shape[0]) if _is_per_token(provenance) else None
                    builder = StateBuilder(path, shape, provenance.dtype, provenance.as_dict(), bounds)
                    self._compute_file(builder, provenance, features, tower)
            file = StateFile(path, provenance.identity())
        # Record when the file was last used. This fails if the process may read the folder but not write to it.
        with suppress(OSError):
            os.utime(path)
        return file

    def _compute_file(
        self,
        builder: StateBuilder,
        provenance: Provenance,
        features: BackboneFeatures,
        tower: Callable[[], BackboneTower],
    ) -> None:
        world = self.world
        if world.is_main:
            with about_file(builder.path, STATE_CACHE):
                done = builder.begin()
            size = builder.shape[0] * builder.row_bytes / 2**20
            what = "outputs" if provenance.states == OUTPUT else f"{builder.shape[1]} states"
            if _is_per_token(provenance):
                what = f"states of the {builder.shape[0]:,} tokens"
            items = f"{what} of {len(features):,} items"
            self.log(f"caching     {provenance.modality}: {items}, {size:,.0f} MiB, to {builder.path}")
            if done:
                self.log(f"continuing  {done:,} of {len(builder.blocks):,} blocks are there")
        world.patient_barrier()
        with about_memory("computing hidden states", LESS_MEMORY):
            self._compute_blocks(builder, provenance, features, tower)
        world.patient_barrier()
        if world.is_main:
            with about_file(builder.path, STATE_CACHE):
                builder.finish()
        world.patient_barrier()

    @torch.no_grad()
    def _compute_blocks(
        self,
        builder: StateBuilder,
        provenance: Provenance,
        features: BackboneFeatures,
        tower: Callable[[], BackboneTower],
    ) -> None:
        world, modality = self.world, provenance.modality
        with about_file(builder.path, STATE_CACHE, "cannot be read"):
            waiting = builder.pending_blocks(world.rank, world.size)
        if not waiting:
            return
        read_states = _state_reader(tower().to(world.device).eval(), provenance.states, features)
        firsts = [BLOCK_ITEMS * builder.blocks.index(row) for row in waiting]
        work = read_blocks_ahead(firsts, BLOCK_ITEMS, len(features), features)
        share = len(builder.blocks[world.rank :: world.size])
        done = share - len(waiting)
        bar = Bar(work, total=len(waiting), desc=f"cache {modality}", unit="block", disable=not world.is_main)
        try:
            for items, read in bar:
                with self.precision.autocast():
                    states = read_states(items, read)
                builder.write_block(builder.blocks[int(items[0] - 1) // BLOCK_ITEMS], states)
                done += 1
        except Interrupted as stop:
            owner = " of this process" if world.size > 1 else ""
            progress = f"{done:,} of {share:,} blocks of {modality} states{owner} are kept"
            stop.advice = f"{progress}, the same command continues"
            raise


def _is_per_token(provenance: Provenance) -> bool:
    return str(provenance.states).startswith(TOKENS)


def token_lengths(features: BackboneFeatures, longest: int) -> np.ndarray:
    """Return the number of tokens of each item 1..n, int64 [n]; `longest` for all if all items have equally many."""
    lengths = features.host_lengths
    return np.full(len(features), longest) if lengths is None else lengths.astype(np.int64)


def token_bounds(features: BackboneFeatures, rows: int) -> list[int]:
    """Return the first row of each block of items in a file with one row per token, followed by the number of rows."""
    ends = np.cumsum(token_lengths(features, rows // len(features)))
    return [0, *ends[BLOCK_ITEMS - 1 : -1 : BLOCK_ITEMS].tolist(), int(ends[-1])]


def _state_reader(
    encoder: BackboneTower, states: list[int] | str, features: BackboneFeatures
) -> Callable[[Tensor, tuple[Tensor, ...]], Tensor]:
    """Return a function that computes the states to cache: [N, K, D], or [tokens, 1, D] if every token's state is kept.

    Its arguments are items int64 [N] and what `features.read` returned for them.
    """
    if states == OUTPUT:
        return lambda items, read: group_inputs(features, items, read).encoded(encoder.read_out).unsqueeze(1)
    if isinstance(states, list):
        encoder.states = states
        return lambda items, read: group_inputs(features, items, read).encoded(encoder.read)
    block = int(states.removeprefix(TOKENS))

    def read_tokens(items: Tensor, read: tuple[Tensor, ...]) -> Tensor:
        hidden = encoder.token_states(block, *features.inputs(items, read))
        lengths = torch.from_numpy(token_lengths(features, hidden.shape[1])[items.numpy() - 1])
        used = torch.arange(hidden.shape[1]) < lengths.unsqueeze(1)
        return hidden[used.to(hidden.device)].unsqueeze(1)

    return read_tokens


def _open_states(
    path: Path, provenance: Provenance, shape: tuple[int, int, int]
) -> tuple[StateFile | None, DamagedStates | None]:
    """Return the file and None; for a damaged file, None and the damage; for a missing file, None twice."""
    if not path.exists():
        return None, None
    try:
        file = StateFile(path, provenance.identity())
        if file.states.shape != shape:
            raise DamagedStates(f"{path}: has states {list(file.states.shape)}, not {list(shape)}")
        return file, None
    except DamagedStates as damage:
        return None, damage


def structure(backbone: nn.Module) -> list[tuple]:
    """Return a value that changes when anything is inserted into a backbone, or changes how the backbone computes."""
    return [
        (name, id(type(module)), len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for name, module in backbone.named_modules()
    ]


def why_not_constant(tower: Tower, original: list[tuple]) -> str:
    """Return why a tower's backbone gives different states in every step; "" if the states are always the same.

    Args:
        original: the `structure` of the backbone before the method was applied.
    """
    backbone = tower.backbone
    if tower.trains_inside:
        return f"parameters inside the {tower.modality} encoder train"
    if structure(backbone) != original:
        return f"the method changes the {tower.modality} encoder"
    return _why_not_fixed(tower)


def _why_not_fixed(tower: Tower) -> str:
    """Return why even an unchanged backbone would give different states in every step, or no states; "" if neither."""
    if not tower.states:
        return f"{tower.stateless_noun} have no hidden states"
    if tower.backbone_dropout:
        return f"the {tower.modality} encoder's dropout is on (--backbone_dropout)"
    if ratio := getattr(tower.backbone.config, "mask_ratio", 0):
        return f"--mask_ratio {ratio:g} draws other patches each time"
    return ""


@dataclass(frozen=True)
class ConstantBlocks:
    """The first blocks of a backbone, which compute the same in every step because a method changes only later blocks.

    Attributes:
        count: the number of these blocks, at least one.
        tokens: T, the number of tokens of the first item, or of every item if all have equally many.
        extra_outputs: the values that such a block returns in a tuple after its hidden states; None if it returns no
            tuple.
        remaining_inputs: maps items int64 [N] on the host to the inputs that the backbone still needs.
    """

    count: int
    tokens: int
    extra_outputs: tuple | None
    remaining_inputs: Callable[[Tensor], tuple[Tensor, ...]]


def constant_blocks(tower: Tower, original: list[tuple], features: BackboneFeatures) -> ConstantBlocks | None:
    """Find the first blocks of a tower's backbone that a method left unchanged, together with all layers before them.

    Returns None if there are no such blocks, or if they cannot be left out.

    Args:
        original: the `structure` of the backbone before the method was applied.
        features: the tower's features. The tower reads the first item, to show which layers run before the blocks.
    """
    backbone, same = tower.backbone, set(original)
    blocks = list(blocks_of(backbone))
    # A block that several layers share (ALBERT) cannot be left out of only some of them.
    if _why_not_fixed(tower) or tower.projection is None or not 1 < len(blocks) == tower.depth:
        return None
    names = {module: name for name, module in backbone.named_modules()}
    touched = {entry[0] for entry in structure(backbone) if entry not in same}
    touched |= {name.rpartition(".")[0] for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    prefixes = [f"{names[block]}." for block in blocks]
    touched_blocks = (n for n, prefix in enumerate(prefixes) if any(f"{name}.".startswith(prefix) for name in touched))
    count = next(touched_blocks, len(blocks) - 1)
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
    extra_outputs = outputs[0][1:] if isinstance(outputs[0], tuple) else None
    if touched & set(in_front) or any(isinstance(value, Tensor) for value in extra_outputs or ()):
        return None
    # Masks are computed from the items' own inputs; without masks, the inputs of any item will do.
    remaining_inputs = (lambda items: first) if features.host_lengths is None else features.inputs
    return ConstantBlocks(count, tokens, extra_outputs, remaining_inputs)


def replace_tower(recommender: Recommender, tower: Tower) -> None:
    """Replace a tower that runs a backbone by a tower that reads the backbone's stored states."""
    # On the meta device, no random numbers are drawn. The projection is reused, if the tower still has one.
    with torch.device("meta"):
        stored = StoredTower(tower.modality, tower.embedding_dim, tower.width, len(tower.states), tower.depth)
    stored.projection = tower.projection
    for module in list(recommender.modules()):
        for name, child in list(module.named_children()):
            if child is tower:
                setattr(module, name, stored)


def weights_digest(name: str, config, seed: int | None = None) -> str:
    """Return what identifies a backbone's weights: a digest of a folder's files, or the commit of a model on the hub.

    Args:
        config: the configuration of the backbone.
        seed: the seed of weights that are drawn at random, which depend on no file but the configuration.

    Raises FileError if a file cannot be read, TransrecError if the commit of a hub model is unknown.
    """
    folder, drawn = Path(name), f" drawn by seed {seed}" if seed is not None else ""
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        if commit is None:
            raise TransrecError(f"{name}: no folder, and the hub named no commit; put it into pretrained_models/")
        return f"{name} {commit}{drawn}"
    patterns = (CONFIGURATION,) if drawn else WEIGHT_FILES
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    hashes = " ".join(f"{file.name} {file_sha256(file)}" for file in files)
    return hashlib.sha256(hashes.encode()).hexdigest() + drawn
