"""Base class and registry of methods, and applying a method to a recommender."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.models.backbone import Block, Stack, layer_norms, view
from transrec.models.quantised import is_quantised
from transrec.models.recommender import Recommender
from transrec.models.towers import BackboneTower, backbone_towers
from transrec.options import Options, flag
from transrec.registry import Registry

PLACES = ("item", "user", "user_first", "user_last", "all")
# The last N blocks of each backbone (item_lastN), or these and the user encoder (all_lastN).
LAST_BLOCKS = re.compile(r"(item|all)_last([1-9]\d*)")


@dataclass(frozen=True)
class MethodOptions(Options):
    """Base class of the flags of all methods; it has no flags of its own."""

    @property
    def extra_tokens(self) -> int:
        """The number of tokens that the method adds to every text."""
        return 0

    def states(self, depths: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the states that are read from backbones with `depths` layers, by modality; empty: their outputs."""
        return {}

    @classmethod
    def flags_from_tensors(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the flags, under our names, whose values follow from the tensors of an original checkpoint."""
        return {}


@dataclass(frozen=True)
class InsertOptions(MethodOptions):
    """Flags of all methods that train only a part of the encoders.

    `_tensor_sizes` maps a flag to the original tensors whose size is its value: a pattern of parameter names, and an
    axis.
    """

    _minimum: ClassVar[dict[str, float]] = {"adapter_lr": 0}
    _tensor_sizes: ClassVar[dict[str, tuple[str, int]]] = {}

    insert: str = flag(
        "all",
        "Where the method is inserted: item or user (one encoder), user_first or user_last (one block of the user "
        "encoder), or all (both encoders). item_last2 (or any number) is the last 2 blocks of each backbone, all_last2 "
        "these and the user encoder; with --cached auto the blocks below run once per item, not in every step.",
    )
    adapter_lr: float = flag(1.5e-4, "Learning rate of the parameters that the method trains.")

    def __post_init__(self):
        super().__post_init__()
        if self.insert not in PLACES and not LAST_BLOCKS.fullmatch(self.insert):
            raise TransrecError(f"--insert {self.insert!r}: must be one of {', '.join(PLACES)}, item_lastN, all_lastN")


@dataclass(frozen=True)
class AdapterOptions(InsertOptions):
    """Flags of methods that insert modules and can also train the LayerNorms around them."""

    train_layernorm: bool = flag(False, "Also train the LayerNorms where the method is inserted.")


@dataclass(frozen=True)
class Place:
    """A place where a method is inserted.

    Attributes:
        tower: "item" (a backbone) or "user" (the user encoder).
        stack: the complete transformer.
        blocks: the blocks of the stack where the method is inserted.
        modality: what the backbone reads; for the user tower, the item encoder's modality (of several, text+image).
        projection: the layer that maps the backbone's output to item embeddings; None in the user tower.
    """

    tower: Literal["item", "user"]
    stack: Stack
    blocks: Sequence[Block]
    modality: str
    projection: nn.Linear | None = None

    @property
    def modules(self) -> list[nn.Module]:
        """The stack's module if all its blocks take part, else the modules of the blocks that do."""
        whole = len(self.blocks) == len(self.stack.blocks)
        return [self.stack.module] if whole else [block.module for block in self.blocks]

    @property
    def layer_norms(self) -> list[nn.Module]:
        return [norm for module in self.modules for norm in layer_norms(module)]


# Value of `Method.changes_at_insertion` if nothing changes but the order of sums, and so their rounding.
ROUNDING = "rounding"

# The parameters that a method trains at one place, by the name of their group if there are several groups.
Trained = Collection[nn.Parameter] | Mapping[str, Collection[nn.Parameter]]


class Method:
    """Base class of all methods. One object serves all places of a run and lives as long as the recommender.

    A method keeps state between steps in persistent buffers of the modules that it inserts. These buffers are saved in
    checkpoints, loaded and resumed like trained parameters. They may change only in `after_step`, so that all ranks
    hold the same values.

    Attributes:
        Options: the dataclass of the method's flags.
        presets: the flag values that the method's paper uses, by modality, or by presets.EVERY for all modalities
            (transrec/presets.py).
        trains_backbone: whether the backbone's own weights train.
        trains_recommender: whether the projection and the user encoder train even after source pretraining.
        trains_existing: the existing weights that `insert` trains, in words; all new parameters train too, and so do
            LayerNorms with --train_layernorm.
        tokenwise: whether what it inserts computes each token of a text or patch of an image from that one alone. Then
            a backbone's last block may leave out tokens at which no item is read.
        reads_steps: whether `after_step` depends on the total number of steps; then --epochs cannot change on resuming.
        changes_at_insertion: how the recommender's output differs after insertion, before any training, in words; "" if
            the output is bit-identical.

    Tests check `trains_existing` and `changes_at_insertion` with the default options (tests/test_methods.py).
    """

    Options: type[MethodOptions] = MethodOptions
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    trains_backbone = False
    trains_recommender = False
    trains_existing = ""
    tokenwise = False
    reads_steps = False
    changes_at_insertion = ""

    def rebuild(self, item_encoder: nn.Module, options: MethodOptions) -> tuple[nn.Module, list[nn.Parameter]]:
        """Return the item encoder to use from now on, and the new parameters in it."""
        return item_encoder, []

    def insert(self, place: Place, options: MethodOptions) -> Trained:
        """Insert modules at `place`, and return the parameters that train there.

        Parameters without a group belong to the group "adapter".
        """
        return []

    def trainable_backbone_parameters(self, tower: BackboneTower, options: MethodOptions) -> Iterable[nn.Parameter]:
        """Return the backbone's own weights that train if `trains_backbone` is set: all by default."""
        return [p for name, p in tower.backbone.named_parameters() if name not in tower.constants]

    def rates(self, options: MethodOptions) -> dict[str, float]:
        """Return the learning rate of each group that `insert` names."""
        lr = getattr(options, "adapter_lr", 0.0)
        return {"adapter": lr, "LayerNorm": lr}

    def penalty(self) -> Tensor | None:
        """Return a penalty, a float32 scalar that each step's loss is increased by; None: no penalty.

        It is added in full, whatever the batch and the number of ranks.
        """
        return None

    @staticmethod
    def reads_padding(options: Any) -> bool:
        """Return whether an item's embedding depends on how far its text is padded: then to --title_tokens, always."""
        return False

    def after_step(self, step: int, steps: int) -> None:
        """Called on every rank after each optimiser step, without gradient; parameters still have that step's `.grad`.

        Args:
            step: the number of steps that the run has taken, from 1.
            steps: the maximum number of steps of the run.
        """


def plain_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with copies of a weight [out, in] and a bias [out], for inserted layers to merge into."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return all parameters of the modules."""
    return [parameter for module in modules for parameter in module.parameters()]


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers in the module's state dict, by name; a buffer that modules share has one name."""
    state = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in state}


METHODS: Registry[Method] = Registry("method", Method, __package__)
register, get, names = METHODS.register, METHODS.get, METHODS.names


@dataclass(frozen=True)
class Rates:
    """Learning rates of the parts that all methods share."""

    recommender: float
    backbone: float


@dataclass(frozen=True)
class TrainableGroup:
    """Parameters that train at one learning rate, keyed by their names in the recommender."""

    name: str
    lr: float
    parameters: dict[str, nn.Parameter]


def apply(
    recommender: Recommender,
    name: str,
    options: MethodOptions,
    rates: Rates,
    train_recommender: bool = False,
    backbone_dropout: bool | None = None,
) -> list[TrainableGroup]:
    """Freeze the recommender, insert the method, and set `requires_grad` on exactly the parameters that train.

    The recommender stores the method, and the names of the buffers that the method added.

    Args:
        train_recommender: also train the projection and the user encoder, regardless of the method.
        backbone_dropout: None keeps dropout active if all of a backbone's own weights train, and in published variants
            over weights that are not quantised.

    Returns:
        The groups for the optimiser; every trainable parameter is in exactly one group.

    Raises TransrecError if the method cannot be inserted at the place that the options name.
    """
    method = recommender.method = get(name)()
    constants = set(recommender.buffers())
    recommender.item_encoder, rebuilt = method.rebuild(recommender.item_encoder, options)
    backbones = backbone_towers(recommender.item_encoder.towers)
    if not method.tokenwise:
        for tower in backbones:
            tower.read_all_tokens()
    recommender.requires_grad_(False)
    # Collected before insertion, so that inserted parameters are not counted among the backbone's own.
    own: list[nn.Parameter] = []
    for tower in backbones:
        trained = list(method.trainable_backbone_parameters(tower, options)) if method.trains_backbone else []
        whole = len(trained) == len(list(tower.backbone.parameters())) - len(tower.constants)
        published = getattr(options, "variant", "paper") == "published" and not is_quantised(tower.backbone)
        by_default = whole or published
        tower.backbone_dropout = by_default if backbone_dropout is None else backbone_dropout
        own += trained
    chosen: dict[nn.Parameter, str] = {}

    def choose(group: str, parameters) -> None:
        for parameter in parameters:
            chosen.setdefault(parameter, group)

    not_recommender = {parameter for tower in backbones for parameter in tower.backbone.parameters()}
    recommender_parameters = [p for p in recommender.parameters() if p not in not_recommender]
    choose("adapter", rebuilt)
    if isinstance(options, InsertOptions):
        for place in _places(recommender, options.insert, name):
            if getattr(options, "train_layernorm", False):
                choose("LayerNorm", parameters_of(place.layer_norms))
            trained = method.insert(place, options)
            for group, parameters in (trained if isinstance(trained, Mapping) else {"adapter": trained}).items():
                choose(group, parameters)
    choose("backbone", own)
    if method.trains_recommender or train_recommender:
        choose("recommender", recommender_parameters)

    group_rates = {"backbone": rates.backbone, "recommender": rates.recommender} | method.rates(options)
    if unknown := sorted({*chosen.values()} - group_rates.keys()):
        raise TransrecError(f"--method {name}: its rates() has no learning rate for its parameter group {unknown[0]!r}")
    if not chosen:
        raise TransrecError(f"--method {name} --insert {options.insert}: nothing there trains; insert it elsewhere too")
    groups = {group: TrainableGroup(group, lr, {}) for group, lr in group_rates.items()}
    for parameter_name, parameter in recommender.named_parameters():
        if parameter in chosen:
            parameter.requires_grad_(True)
            groups[chosen[parameter]].parameters[parameter_name] = parameter
    recommender.saved_buffers = [
        name for name, buffer in persistent_buffers(recommender).items() if buffer not in constants
    ]
    return [group for group in groups.values() if group.parameters]


def _places(recommender: Recommender, where: str, name: str) -> list[Place]:
    places = []
    encoder = recommender.item_encoder
    last = LAST_BLOCKS.fullmatch(where)
    if last or where in ("item", "all"):
        backbones = backbone_towers(encoder.towers)
        if not backbones:
            raise TransrecError(
                f"--method {name} --insert {where}: no backbone reads the items ({encoder.modality}), there is none to "
                f"insert into; use --insert user, or --modalities text or image"
            )
        for tower in backbones:
            stack = view(tower.backbone)
            blocks = last_blocks(stack.blocks, int(last[2]), f"--insert {where}") if last else stack.blocks
            places.append(Place("item", stack, blocks, tower.modality, tower.projection))
    if where != "item" and not where.startswith("item_"):
        stack = _user_stack(recommender, where, name)
        blocks = {"user_first": stack.blocks[:1], "user_last": stack.blocks[-1:]}.get(where, stack.blocks)
        places.append(Place("user", stack, blocks, encoder.modality))
    return places


def last_blocks(blocks: Sequence[Any], count: int, flag: str) -> Sequence[Any]:
    """Return the last `count` of a backbone's blocks. Raises TransrecError, naming the flag, if it has fewer."""
    if count > len(blocks):
        raise TransrecError(f"{flag}: the item encoder has {len(blocks)} blocks of its own; give at most that number")
    return blocks[len(blocks) - count :]


def _user_stack(recommender: Recommender, where: str, name: str) -> Stack:
    try:
        return view(recommender.user_encoder)
    except TransrecError as error:
        kind = type(recommender.user_encoder).__name__
        raise TransrecError(
            f"--method {name} --insert {where}: the user encoder {kind} has no transformer blocks to insert into; use "
            f"--insert item or --user_encoder sasrec or ligr"
        ) from error
