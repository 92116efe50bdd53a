"""Measure a softmax over a full catalogue: seconds and peak memory of a step, in chunks and with all scores at once.

    python benchmarks/softmax.py --items 20000
    python benchmarks/softmax.py --items 1000000 --chunked_only

A step computes the loss of every position of a batch and its gradients with respect to user vectors and item
embeddings. Each way runs in a process of its own; its memory is the growth of the process's peak memory.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from measured import report
from torch.nn import functional as F

sys.path[1:1] = [str(Path(__file__).resolve().parents[1])]

from transrec.models.objectives.softmax import cross_entropy  # noqa: E402
from transrec.training.profiler import peak_memory_mib  # noqa: E402

CPU = torch.device("cpu")


def step(way: str, positions: int, items: int, width: int, memory: int) -> None:
    """Take one step, and print its seconds, the growth of peak memory in MiB, and the loss."""
    torch.manual_seed(0)
    users, embeddings = ((0.1 * torch.randn(size, width)).requires_grad_() for size in (positions, items))
    targets = torch.randint(items, (positions,))
    # A small step first, so that one-time costs of a process are not measured.
    cross_entropy(users[:2], embeddings[:9], targets[:2] % 9, 2**20).sum().backward()
    users.grad = embeddings.grad = None
    before, started = peak_memory_mib(CPU), time.perf_counter()
    if way == "chunked":
        loss = cross_entropy(users, embeddings, targets, memory * 2**20).sum()
    else:
        loss = F.cross_entropy(users @ embeddings.T, targets, reduction="sum")
    loss.backward()
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, peak_memory_mib(CPU) - before, loss.item()]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--positions", type=int, default=128 * 50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--memory", type=int, default=64, help="maximum MiB for the scores of a chunk")
    parser.add_argument("--chunked_only", action="store_true", help="skip the way that computes all scores at once")
    parser.add_argument("--way", choices=["chunked", "plain"], help="measure only this way, in this process")
    given = parser.parse_args()
    if given.way:
        step(given.way, given.positions, given.items, given.width, given.memory)
    else:
        rows, figures = [], {}
        for way in ("chunked",) if given.chunked_only else ("chunked", "plain"):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            seconds, memory, loss = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            rows.append([way, f"{seconds:.2f}", f"{memory:,.0f}", f"{loss:.3f}"])
            figures |= {f"{way} seconds": seconds, f"{way} MiB": memory}
        report([f"{given.positions:,} positions, {given.items:,} items", "s per step", "MiB", "loss"], rows, figures)
