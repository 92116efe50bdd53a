"""Backbones split over the processes (--shard): weights, gradients and optimiser states, by torch's fully_shard.

Each process keeps a part of every parameter inside a backbone. The weights of a block are gathered when the block runs
and freed afterwards, so all processes must run every backbone equally often. Weights outside backbones are not split.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, cast

from torch import Tensor, nn

from transrec.errors import TransrecError
from transrec.methods import Method, TrainableGroup
from transrec.models.backbone import blocks_of
from transrec.models.quantised import is_quantised
from transrec.models.recommender import Recommender
from transrec.models.towers import Tower, backbone_towers
from transrec.options import TrainingOptions
from transrec.training.distributed import World
from transrec.training.precision import Precision


def why_not_split(training: TrainingOptions, world: World, precision: Precision) -> str:
    """Return why --shard cannot split the backbones of a run with these options; "" if it can."""
    if world.size == 1:
        return "splits backbones over several processes, and this run is one; give --nproc 2 or more"
    if training.compile:
        return "not with --compile; leave one of them out"
    if precision.name == "fp16":
        return "not with --precision fp16, whose loss scale each process would lower by itself; use bf16"
    return ""


def why_weights_not_split(recommender: Recommender) -> str:
    """Return why --shard cannot split the backbones of this recommender; "" if it can."""
    method = type(recommender.method)
    if method.penalty is not Method.penalty or method.after_step is not Method.after_step:
        return "the method reads or changes whole weights after each step; use another, or leave --shard out"
    for tower in backbone_towers(cast("list[Tower]", recommender.item_encoder.towers)):
        if is_quantised(cast(nn.Module, tower.backbone)):
            return f"the weights of the {tower.modality} encoder are quantised; leave --shard out"
    return ""


def check_sharding(training: TrainingOptions, world: World, precision: Precision) -> None:
    """Raise TransrecError if --shard is given and the run cannot be split."""
    if training.shard and (why := why_not_split(training, world, precision)):
        raise TransrecError(f"--shard: {why}")


def shard(recommender: Recommender, groups: list[TrainableGroup], world: World) -> list[TrainableGroup]:
    """Split each backbone that the recommender runs over all processes, moving it from the CPU to the world's device.

    Returns:
        The groups, holding the parameters that have replaced the original ones.

    Raises TransrecError if the method reads or changes weights outside the forward pass, or if a backbone is quantised.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if why := why_weights_not_split(recommender):
        raise TransrecError(f"--shard: {why}")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for tower in backbone_towers(cast("list[Tower]", recommender.item_encoder.towers)):
        backbone = cast(nn.Module, tower.backbone)
        # Blocks below the ones that run may have been emptied of their parameters.
        blocks = [block for block in blocks_of(backbone) if any(True for _ in block.parameters())]
        shared: dict[str, Any] = {"ignored_params": several} if (several := _in_several(blocks)) else {}
        if shared and "ignored_params" not in signature(fully_shard).parameters:
            raise TransrecError("--shard: the method's blocks share weights, which needs torch 2.7 or newer")
        for part in (*blocks, backbone):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, **shared)
    parameters = dict(recommender.named_parameters())
    return [replace(group, parameters={name: parameters[name] for name in group.parameters}) for group in groups]


def _in_several(blocks: list[nn.Module]) -> set[nn.Parameter]:
    """Return the parameters that several blocks share. They are not split."""
    times = Counter(parameter for block in blocks for parameter in block.parameters())
    return {parameter for parameter, count in times.items() if count > 1}


def is_split(tensor: Tensor) -> bool:
    """Return whether this process keeps only a part of the tensor."""
    return hasattr(tensor, "full_tensor")


def is_sharded(recommender: Recommender) -> bool:
    """Return whether `shard` has split any parameter of the recommender."""
    return any(map(is_split, recommender.parameters()))


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process keeps."""
    return cast(Any, tensor).to_local() if is_split(tensor) else tensor


def gather(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Return the tensors by name, with split tensors gathered, on the main process, and {} on the others.

    All processes must call this function.
    """
    gathered = {}
    for name, tensor in tensors.items():
        full = cast(Any, tensor.detach()).full_tensor() if is_split(tensor) else tensor
        if world.is_main:
            # Each gathered tensor moves to the CPU at once: the device may hold the parts but not all full tensors.
            gathered[name] = full.cpu() if is_split(tensor) else full
    return gathered


def split_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a full tensor split in the same way as `like`, or unchanged if `like` is not split.

    All processes must call this function.
    """
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    split = cast(Any, like)
    return distribute_tensor(tensor.to(like.device), split.device_mesh, split.placements)


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Average the gradients of parameters that are not split over all processes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        summed = world.sum(nn.utils.parameters_to_vector(gradients))
        nn.utils.vector_to_parameters(summed / world.size, gradients)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, world: World) -> None:
    """Scale the gradients of all parameters, split or not, so that their total norm is at most `max_norm`."""
    parameters = list(parameters)
    if not any(map(is_split, parameters)):
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    split, held = ([local(grad) for grad in gradients if is_split(grad) == kind] for kind in (True, False))
    norms = [nn.utils.get_total_norm(kind) for kind in (split, held)]
    norm = (world.sum(norms[0] ** 2) + norms[1] ** 2).sqrt()
    for gradient in (*split, *held):
        # The same formula as in torch.nn.utils.clip_grad_norm_.
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
