"""Compare computing the top 10 of 100,000 items for 100,000 users in bounded memory with the matrix product alone.

    python benchmarks/topk.py [--threads 2] [--users 100000] [--items 100000] [--device cuda]

Vectors have width 64, and 20 items per user are left out. The matrix product alone computes the same scores block by
block and discards them; the plain way applies torch's topk to each block.
"""

import argparse
import time

import torch
from measured import report

from transrec.topk import top_items
from transrec.training.evaluation import USERS_AT_ONCE
from transrec.training.profiler import peak_memory_mib

WIDTH, K, SEEN, MEMORY = 64, 10, 20, 64 * 2**20


def product(users, items, seen, owner) -> None:
    users @ items.T


def plain(users, items, seen, owner) -> torch.Tensor:
    scores = users @ items.T
    scores[owner, seen] = -torch.inf
    return scores.topk(K).indices


def ours(users, items, seen, owner) -> torch.Tensor:
    return top_items(users, items, (seen, owner), K, MEMORY)[1]


def seconds(function, users, items, seen) -> float:
    owner = torch.arange(USERS_AT_ONCE, device=users.device).repeat_interleave(SEEN)
    started = now(users)
    for start in range(0, len(users), USERS_AT_ONCE):
        block = users[start : start + USERS_AT_ONCE]
        function(block, items, seen[start : start + len(block)].flatten(), owner[: len(block) * SEEN])
    return now(users) - started


def now(tensor: torch.Tensor) -> float:
    """Return the time once the tensor's device has finished all queued work."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    users, items = (torch.randn(count, WIDTH, device=arguments.device) for count in (arguments.users, arguments.items))
    seen = torch.randint(0, arguments.items, (arguments.users, SEEN), device=arguments.device)
    few = slice(0, 4 * USERS_AT_ONCE)
    before = peak_memory_mib(users.device)
    seconds(ours, users[few], items, seen[few])
    memory = peak_memory_mib(users.device) - before
    took = {}
    for name, function in {"matrix product alone": product, "transrec": ours, "torch's topk": plain}.items():
        seconds(function, users[few], items, seen[few])
        took[name] = seconds(function, users, items, seen)
    rows = [[name, f"{time_:.1f}", f"{time_ / took['matrix product alone']:.2f}"] for name, time_ in took.items()]
    header = [f"{arguments.users:,} users x {arguments.items:,} items", "seconds", "times the product"]
    figures = {"times the product": took["transrec"] / took["matrix product alone"], "seconds": took["transrec"]}
    report(header, rows, figures)
    print(f"transrec's top 10 took {memory:,.0f} MiB more than the vectors themselves")
