"""Backbones split over the processes: weights, gradients and optimiser states, by torch's fully_shard (--shard).

Each process keeps a part of every parameter inside a backbone. A block's weights are gathered when it runs and dropped
behind it, so that all processes must run every backbone equally often. What lies outside backbones is held whole.
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
from transrec.models.towers import Tower, running
from transrec.options import TrainingOptions
from transrec.training.distributed import World
from transrec.training.precision import Precision


def why_not_split(training: TrainingOptions, world: World, precision: Precision) -> str:
    """Why --shard cannot split the backbones of a run with these options; "" where it can."""
    if world.size == 1:
        return "splits backbones over several processes, and this run is one; give --nproc 2 or more"
    if training.compile:
        return "not with --compile; leave one of them out"
    if precision.name == "fp16":
        return "not with --precision fp16, whose loss scale each process would lower by itself; use bf16"
    return ""


def check_sharding(training: TrainingOptions, world: World, precision: Precision) -> None:
    """Raise TransrecError where --shard is given and the run cannot be split."""
    if training.shard and (why := why_not_split(training, world, precision)):
        raise TransrecError(f"--shard: {why}")


def shard(recommender: Recommender, groups: list[TrainableGroup], world: World) -> list[TrainableGroup]:
    """Split each backbone that the recommender runs over all processes, from the CPU onto the world's device.

    Returns:
        The groups, of the parameters as they are now.

    Raises TransrecError where the method reads parameters outside of a step, and for quantised backbones.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    method = type(recommender.method)
    if method.penalty is not Method.penalty or method.after_step is not Method.after_step:
        raise TransrecError(
            "--shard: the method reads or changes whole weights after each step; use another, or leave --shard out"
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    for tower in running(cast("list[Tower]", recommender.item_encoder.towers)):
        backbone = cast(nn.Module, tower.backbone)
        if is_quantised(backbone):
            raise TransrecError(
                f"--shard: the weights of the {tower.modality} encoder are quantised; leave --shard out"
            )
        # Blocks below those that run may have been emptied.
        blocks = [block for block in blocks_of(backbone) if any(True for _ in block.parameters())]
        shared: dict[str, Any] = {"ignored_params": several} if (several := _in_several(blocks)) else {}
        if shared and "ignored_params" not in signature(fully_shard).parameters:
            raise TransrecError("--shard: the method's blocks share weights, which needs torch 2.7 or newer")
        for part in (*blocks, backbone):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, **shared)
    parameters = dict(recommender.named_parameters())
    return [replace(group, parameters={name: parameters[name] for name in group.parameters}) for group in groups]


def _in_several(blocks: list[nn.Module]) -> set[nn.Parameter]:
    """The parameters that more than one of the blocks holds, which stay whole."""
    times = Counter(parameter for block in blocks for parameter in block.parameters())
    return {parameter for parameter, count in times.items() if count > 1}


def is_split(tensor: Tensor) -> bool:
    """Whether this process keeps only a part of it."""
    return hasattr(tensor, "full_tensor")


def is_sharded(recommender: Recommender) -> bool:
    """Whether `shard` has split anything of it."""
    return any(map(is_split, recommender.parameters()))


def local(tensor: Tensor) -> Tensor:
    """What this process keeps of a tensor."""
    return cast(Any, tensor).to_local() if is_split(tensor) else tensor


def whole(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The tensors by name, those that are split put together, on the main process; none on others. All must call it."""
    found = {}
    for name, tensor in tensors.items():
        full = cast(Any, tensor.detach()).full_tensor() if is_split(tensor) else tensor
        if world.is_main:
            # One at a time: together they may not fit where their parts do.
            found[name] = full.cpu() if is_split(tensor) else full
    return found


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor what corresponds to `like`: split as that is, if it is. All processes must call it."""
    if not is_split(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    split = cast(Any, like)
    return distribute_tensor(tensor.to(like.device), split.device_mesh, split.placements)


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Give parameters that every process holds whole the mean of all processes' gradients."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        summed = world.sum(nn.utils.parameters_to_vector(gradients))
        nn.utils.vector_to_parameters(summed / world.size, gradients)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, world: World) -> None:
    """Scale the gradients of parameters, split or whole, so that their norm together is at most `max_norm`."""
    parameters = list(parameters)
    if not any(map(is_split, parameters)):
        nn.utils.clip_grad_norm_(parameters, max_norm)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    split, held = ([local(each) for each in gradients if is_split(each) == kind] for kind in (True, False))
    norms = [nn.utils.get_total_norm(kind) for kind in (split, held)]
    norm = (world.sum(norms[0] ** 2) + norms[1] ** 2).sqrt()
    for gradient in (*split, *held):
        # As torch.nn.utils.clip_grad_norm_ does.
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
