"""Run under torchrun: communication between ranks, over NCCL on GPUs and gloo elsewhere; prints the result.

torchrun --nproc_per_node N nccl_worker.py DEVICE
"""

import os
import sys

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from transrec.models.gathering import _AllGather, gather_rows
from transrec.models.user_encoders.sasrec import SASRec
from transrec.training.distributed import World


def main(kind: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
        torch.use_deterministic_algorithms(True)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    world = World(rank, size, device)

    world.barrier()
    # A `World` of one rank skips communication, so the calls are made here as it makes them for several.
    for values in (torch.ones(3, device=device), torch.ones(3, dtype=torch.float64, device=device), torch.tensor(1)):
        distributed.all_reduce(values)
        assert (values == size).all()
    names = [f"of rank {rank}"]
    distributed.broadcast_object_list(names)
    assert names == ["of rank 0"]

    rows = torch.full((2, 3), float(rank), device=device, requires_grad=True)
    gathered = _AllGather.apply(rows)
    assert gathered.shape == (size, 2, 3) and torch.equal(gathered[rank], rows)
    (gathered * 2).sum().backward()
    assert (rows.grad == 2 * size).all()
    uneven = torch.full((rank + 1, 2), float(rank), device=device)
    assert len(gather_rows(uneven)) == size * (size + 1) // 2

    torch.manual_seed(0)
    plain, wrapped = (SASRec(16, 6, 2, 2, 0.0).to(device) for _ in range(2))
    wrapped.load_state_dict(plain.state_dict())
    parallel = DistributedDataParallel(wrapped, device_ids=[device] if kind == "cuda" else None)
    inputs, mask = torch.randn(4, 6, 16, device=device), torch.ones(4, 6, dtype=torch.bool, device=device)
    for model in (plain, parallel):
        model(inputs, mask).square().sum().backward()
    for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)
    world.barrier()
    distributed.destroy_process_group()
    print(f"rank {rank} of {size} on {device}: all is well", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
