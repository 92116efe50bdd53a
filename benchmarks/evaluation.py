"""Compare full ranking of 12,000 users over 20,000 items in blocks on the device with one sort per user.

    python benchmarks/evaluation.py [--threads 2] [--device cuda]

Both rank the same vectors (d = 64) with 5 to 10 masked items per user. Their ranks must agree, except that rounding may
move one rank in a thousand by one. The plain way scores a user, masks the history, sorts all items and looks up the
target, as research code does; once with torch, and once with numpy, whose sort uses vector instructions on some
processors.

The second table shows what it costs to keep ranks for later tests. It compares blocks of 64 MiB whose ranks and margins
are written to a file with blocks that compute only ranks and write nothing. The two are measured alternately.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measured import report

from transrec.training.evaluation import USERS_AT_ONCE, Ranker
from transrec.training.ranks import RANK, write_ranks

USERS, ITEMS, WIDTH = 12_000, 20_000, 64
MEBIBYTES, TURNS = 64, 15


class RanksAlone(Ranker):
    """Counts the items with higher and with equal scores, and computes no margins."""

    def _block(self, users, targets, history, owner):
        scores, comparison = self.scores[: len(users)], self.differences[: len(users)]
        self.score(users, scores)
        target = scores.gather(1, (targets - 1).unsqueeze(1))
        scores[owner, history - 1] = -torch.inf
        higher = torch.gt(scores, target, out=comparison).sum(1)
        equal_others = torch.eq(scores, target, out=comparison).sum(1) - 1
        ranks = 1 + higher + torch.ceil(equal_others / 2)
        ranks[owner[history == targets[owner]]] = torch.inf
        return ranks, ranks


def blocks(users, items, targets, history, offsets, memory: int, kind: type[Ranker] = Ranker) -> torch.Tensor:
    """Return ranks and margins: float32 [2, USERS]."""
    ranker = kind(items, memory, "seen")
    results = []
    for start in range(0, USERS, USERS_AT_ONCE):
        stop = min(start + USERS_AT_ONCE, USERS)
        seen = history[offsets[start] : offsets[stop]]
        owner = torch.repeat_interleave(
            torch.arange(stop - start, device=users.device), offsets[start : stop + 1].diff()
        )
        results.append(torch.stack(ranker.rank(users[start:stop], targets[start:stop], seen, owner)[:2]))
    return torch.cat(results, dim=1)


def rank_and_write(folder: Path, *data) -> torch.Tensor:
    """Return the results of `blocks`, and write them into a folder as a run does."""
    ranks, margins = results = blocks(*data)
    records = np.zeros(USERS, RANK)
    records["rank"], records["margin"] = ranks.cpu(), margins.cpu()
    write_ranks(folder, "test", records)
    return results


def sort_with_torch(users, items, targets, history, offsets) -> torch.Tensor:
    ranks = []
    for user in range(USERS):
        scores = items @ users[user]
        scores[history[offsets[user] : offsets[user + 1]] - 1] = -torch.inf
        order = torch.argsort(scores, descending=True)
        ranks.append((order == targets[user] - 1).nonzero().item() + 1)
    return torch.tensor(ranks)


def sort_with_numpy(users, items, targets, history, offsets) -> torch.Tensor:
    users, items, targets, history, offsets = (x.cpu().numpy() for x in (users, items, targets, history, offsets))
    ranks = []
    for user in range(USERS):
        scores = items @ users[user]
        scores[history[offsets[user] : offsets[user + 1]] - 1] = -np.inf
        ranks.append(int(np.flatnonzero(np.argsort(-scores) == targets[user] - 1)[0]) + 1)
    return torch.tensor(ranks)


def timed(function, *arguments):
    started = time.perf_counter()
    result = function(*arguments)
    if arguments[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    users, items = torch.randn(USERS, WIDTH), torch.randn(ITEMS, WIDTH)
    # Items 1..1000 occur only as targets, so that no target is masked.
    targets = torch.randint(1, 1001, (USERS,))
    lengths = torch.randint(5, 11, (USERS,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    history = torch.randint(1001, ITEMS + 1, (int(offsets[-1]),))
    data = tuple(tensor.to(given.device) for tensor in (users, items, targets, history, offsets))

    reference, _ = timed(sort_with_torch, *data)
    rows = [["one sort per user, torch", f"{reference:.2f}", "1.0"]]
    seconds, plain = timed(sort_with_numpy, *data)
    rows.append(["one sort per user, numpy", f"{seconds:.2f}", f"{reference / seconds:.1f}"])
    for mebibytes in (4, 16, 64, 256):
        # The first call allocates memory and loads kernels; the median of the next five calls is reported.
        times = [timed(blocks, *data, mebibytes * 2**20) for _ in range(6)]
        seconds = float(np.median([t for t, _ in times[1:]]))
        ranks = times[0][1][0].long().cpu()
        # Summing in another order can swap two nearly equal scores: at most one rank in a thousand may move, by one.
        moved = (ranks - plain).abs()
        assert moved.max() <= 1 and (moved > 0).float().mean() < 1e-3, "the two disagree"
        rows.append([f"blocks of {mebibytes} MiB", f"{seconds:.2f}", f"{reference / seconds:.1f}"])
    header = ["12,000 users x 20,000 items", "seconds", "times faster than torch's sort"]
    report(header, rows, {"times faster than torch's sort": reference / seconds})

    turns = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(TURNS):
            alone, expected = timed(blocks, *data, MEBIBYTES * 2**20, RanksAlone)
            keeping, results = timed(partial(rank_and_write, Path(folder)), *data, MEBIBYTES * 2**20)
            assert torch.equal(results[0], expected[0]), "the two disagree"
            turns.append((alone, keeping))
    alone, keeping = np.median(turns, axis=0)
    ratio = np.median([second / first for first, second in turns])
    rows = [["ranks alone", f"{alone:.2f}", "1.00"], ["ranks and margins, kept", f"{keeping:.2f}", f"{ratio:.2f}"]]
    print()
    report(["12,000 users x 20,000 items", "seconds", "times the first, median of turns"], rows, {"of evidence": ratio})
