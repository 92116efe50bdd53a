"""Top 10 of 100,000 items for 100,000 users in bounded memory, beside the matrix product alone.

    python benchmarks/topk.py [--threads 2] [--users 100000]

Width 64, 20 items left out for each user. The product alone makes the same scores block by block and looks at none; the
plain way takes torch's topk of each block.
"""

import argparse
import resource
import time

import torch

from transrec.reports.tables import markdown
from transrec.topk import top_items
from transrec.training.evaluation import USERS_AT_ONCE

ITEMS, WIDTH, K, SEEN, MEMORY = 100_000, 64, 10, 20, 64 * 2**20


def product(users, items, seen, owner) -> None:
    users @ items.T


def plain(users, items, seen, owner) -> torch.Tensor:
    scores = users @ items.T
    scores[owner, seen] = -torch.inf
    return scores.topk(K).indices


def ours(users, items, seen, owner) -> torch.Tensor:
    return top_items(users, items, (seen, owner), K, MEMORY)[1]


def seconds(function, users, items, seen) -> float:
    owner = torch.arange(USERS_AT_ONCE).repeat_interleave(SEEN)
    started = time.perf_counter()
    for start in range(0, len(users), USERS_AT_ONCE):
        block = users[start : start + USERS_AT_ONCE]
        function(block, items, seen[start : start + len(block)].flatten(), owner[: len(block) * SEEN])
    return time.perf_counter() - started


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--users", type=int, default=100_000)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    users, items = torch.randn(arguments.users, WIDTH), torch.randn(ITEMS, WIDTH)
    seen = torch.randint(0, ITEMS, (arguments.users, SEEN))
    few = slice(0, 4 * USERS_AT_ONCE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds(ours, users[few], items, seen[few])
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    took = {}
    for name, function in {"matrix product alone": product, "transrec": ours, "torch's topk": plain}.items():
        seconds(function, users[few], items, seen[few])
        took[name] = seconds(function, users, items, seen)
    rows = [[name, f"{of:.1f}", f"{of / took['matrix product alone']:.2f}"] for name, of in took.items()]
    print(markdown([f"{arguments.users:,} users x {ITEMS:,} items", "seconds", "times the product"], rows))
    print(f"transrec's top 10 took {memory:,.0f} MiB more than the vectors themselves")
