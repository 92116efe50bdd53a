"""Full ranking of every item for every user, in blocks of bounded memory (docs/protocol.md).

Blocks are cut by position, never by rank: how many processes share them changes nothing in any block, and each user is
ranked once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from transrec.data.features import Features, blocks_ahead
from transrec.data.groups import grouped
from transrec.data.interactions import Sequences, Split
from transrec.errors import TransrecError, about_memory
from transrec.models.recommender import Recommender
from transrec.options import EvaluationOptions
from transrec.progress import Bar
from transrec.topk import best
from transrec.training.distributed import World
from transrec.training.metrics import PAPERS, Metric, Ranking, intervals, summarise
from transrec.training.precision import Precision
from transrec.training.sharding import is_sharded

USERS_AT_ONCE = 256


class Scores(Protocol):
    """Scores of items 1..n that are no inner products."""

    device: torch.device

    def __len__(self) -> int:
        """n."""
        ...

    def score(self, users: Tensor, out: Tensor) -> None:
        """Write those of B users into `out`, float32 [B, n]."""
        ...


@dataclass(frozen=True)
class Scorer:
    """What ranks items without a recommender.

    Attributes:
        items: float32 [n, d], whose inner products with user vectors are the scores; or what scores them otherwise.
        users: gives user vectors [B, d], or what else `items` scores, of contexts int64 [B, L], left-padded with 0.
    """

    items: Tensor | Scores
    users: Callable[[Tensor], Tensor]


class Ranked(NamedTuple):
    """What a `Ranker` makes of B users.

    Attributes:
        ranks: float32 [B], exact to 2**24: 1 + items scored strictly higher than the target + half of the equal ones,
            rounded up; infinity where the target itself is masked.
        margins: float32 [B], the target's score less the highest of the other items that are not masked: minus infinity
            where the target is masked, infinity where all others are.
        lists: int32 [B, length], the items 1..n that score highest, best first, of equal ones the lower number first; 0
            where all others are masked.
    """

    ranks: Tensor
    margins: Tensor
    lists: Tensor


class Ranker:
    """Ranks targets among all items, one block of users at a time.

    Args:
        items: float32 [n, d] of items 1..n, whose inner products with user vectors are the scores; or what scores them
            otherwise.
        memory: bytes that scores may take at a time; scores of at least one user are computed at a time.
        mask_history: "seen", "none" or "seen_but_target" (docs/protocol.md).
        length: of the lists of recommended items, at most n; 0: none are made.
    """

    def __init__(self, items: Tensor | Scores, memory: int, mask_history: str, length: int = 0):
        self.score = partial(_products, items) if isinstance(items, Tensor) else items.score
        self.mask_history, self.length = mask_history, length
        count = len(items)
        self.rows = min(USERS_AT_ONCE, max(1, memory // (2 * torch.float32.itemsize * count)))
        self.scores = torch.empty(self.rows, count, device=items.device)
        self.differences = torch.empty_like(self.scores)

    def ranks(self, users: Tensor, targets: Tensor, history: Tensor, owner: Tensor) -> Tensor:
        """The ranks of `rank` alone."""
        return self.rank(users, targets, history, owner).ranks

    def rank(self, users: Tensor, targets: Tensor, history: Tensor, owner: Tensor) -> Ranked:
        """Rank each user's target among all items.

        Args:
            users: float32 [B, d], or what else the items are scored by.
            targets: int64 [B], item numbers 1..n.
            history, owner: int64 [H], seen items and the row of `users` each belongs to.

        Raises TransrecError for scores that are not finite.
        """
        if self.mask_history == "none":
            history, owner = history[:0], owner[:0]
        elif self.mask_history == "seen_but_target":
            other = history != targets[owner]
            history, owner = history[other], owner[other]
        ranks, margins = torch.empty(2, len(users), device=users.device)
        lists = torch.empty(len(users), self.length, dtype=torch.int32, device=users.device)
        for start in range(0, len(users), self.rows):
            block = slice(start, min(start + self.rows, len(users)))
            mine = (owner >= block.start) & (owner < block.stop)
            found = self._block(users[block], targets[block], history[mine], owner[mine] - start)
            ranks[block], margins[block] = found
            if self.length:
                lists[block] = self._lists(len(ranks[block]))
        return Ranked(ranks, margins, lists)

    def _lists(self, users: int) -> Tensor:
        """Of the block that was ranked last."""
        scores, items = best(self.scores[:users], self.length)
        return torch.where(scores == -torch.inf, 0, items + 1).int()

    def _block(self, users: Tensor, targets: Tensor, history: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        # Computing into float buffers made once is what makes this fast: a boolean matrix is slow to sum.
        scores, differences = self.scores[: len(users)], self.differences[: len(users)]
        self.score(users, scores)
        places = (targets - 1).unsqueeze(1)
        target = scores.gather(1, places)
        scores[owner, history - 1] = -torch.inf
        torch.sub(scores, target, out=differences).scatter_(1, places, -torch.inf)
        margins = -differences.amax(1)
        if margins.isnan().any():
            raise _not_finite("scores")
        # The signs of the others sum to the number of the higher ones less that of the lower ones, the target's is -1.
        twice = differences.sign_().sum(1).long() + scores.shape[1]
        ranks = (1 + (twice + 1) // 2).float()
        masked = owner[history == targets[owner]]
        ranks[masked], margins[masked] = torch.inf, -torch.inf
        return ranks, margins


def _products(items: Tensor, users: Tensor, out: Tensor) -> None:
    torch.mm(users, items.T, out=out)


class Evaluator:
    """Evaluates recommenders on the validation or test part of one split.

    Args:
        features: source of the item encoder's inputs.
        options: cut-offs, memory, and what is left out of a ranking.
        metrics: what is computed.
    """

    def __init__(
        self,
        split: Split,
        features: Features,
        options: EvaluationOptions,
        world: World,
        precision: Precision | None = None,
        metrics: Sequence[Metric] = PAPERS,
    ):
        self.split, self.features, self.options = split, features, options
        self.world, self.precision = world, precision or Precision("fp32", world.device)
        self.metrics = metrics
        self.needs_embeddings = any(metric.needs_embeddings for metric in metrics)
        needs_lists = any(metric.needs_lists for metric in metrics)
        self.length = min(max(options.cutoffs), split.item_count) if needs_lists else 0

    @torch.no_grad()
    def encode_items(self, recommender: Recommender) -> Tensor:
        """Embeddings of items 1..n, float32 [n, d], on every rank."""
        batch, count = self.options.eval_batch, self.split.item_count
        embeddings = torch.zeros(count, recommender.user_encoder.width, device=self.world.device)
        blocks = self._mine(range(0, count, batch))
        work = blocks_ahead(blocks, batch, count, self.features)
        for items, read in self._progress(work, blocks, "encode items"):
            with self.precision.autocast():
                encoded = grouped(self.features, items, read).encoded(recommender.item_encoder).float()
            embeddings[items[0] - 1 : items[-1]] = encoded
        if is_sharded(recommender):
            self._keep_up(recommender, len(blocks), -(-len(range(0, count, batch)) // self.world.size))
        return self.world.sum(embeddings)

    def _keep_up(self, recommender: Recommender, done: int, most: int) -> None:
        """Encode an item for each block that others have more: they wait for this rank's part of the weights."""
        for _ in range(done, most):
            with self.precision.autocast():
                grouped(self.features, torch.ones(1, dtype=torch.int64)).encoded(recommender.item_encoder)

    def evaluate(self, recommender: Recommender, part: str) -> dict[str, float]:
        """Metrics on `part`, "validation" or "test". Raises TransrecError as `rank`."""
        return self.summarise(self.rank(recommender, part))

    def summarise(self, ranking: Ranking) -> dict[str, float]:
        """The metrics of a ranking at the cut-offs of the options, less those that it lacks the embeddings for."""
        possible = [each for each in self.metrics if ranking.embeddings is not None or not each.needs_embeddings]
        return summarise(ranking, self.options.cutoffs, possible)

    def intervals(self, ranking: Ranking, part: str) -> dict[str, tuple[float, float]]:
        """95 % intervals for the metrics of all users, where the split evaluates a sample of them; else none."""
        if self.split.evaluated_users is None:
            return {}
        owners, _ = self.split.targets(part)
        return intervals(ranking, owners, self.split.user_count, self.options.cutoffs, self.metrics)

    @torch.no_grad()
    def encode_users(self, recommender: Recommender, items: Tensor, sequences: np.ndarray) -> Tensor:
        """User vectors float32 [B, d] of the last items of B users, int [B, L], left-padded with 0.

        Args:
            items: float32 [n, d], embeddings of items 1..n.
        """
        on_device = torch.from_numpy(sequences).long().to(items.device)
        mask = on_device > 0
        with self.precision.autocast():
            embeddings = items[(on_device - 1).clamp(min=0)] * mask.unsqueeze(-1)
            return recommender.user_encoder(embeddings, mask)[:, -1].float()

    @torch.no_grad()
    def rank(self, recommender: Recommender, part: str, items: Tensor | None = None) -> Ranking:
        """Rank the targets of `part`, "validation" or "test"; equal on every rank.

        Args:
            items: what `encode_items` gave, where it was called before.

        Raises TransrecError when the model gives embeddings, user vectors or scores that are not finite.
        """
        was_training = recommender.training
        recommender.eval()
        if items is None:
            with about_memory("encoding the items", f"give a smaller --eval_batch than {self.options.eval_batch}"):
                items = self.encode_items(recommender)
        context = getattr(self.split, part).without_last(1)

        def user_vectors(users: np.ndarray) -> Tensor:
            return self.encode_users(recommender, items, context.last(self.split.max_seq_len, users))

        ranking = self._rank_in_blocks(recommender.objective.scored(items), user_vectors, part)
        recommender.train(was_training)
        return ranking

    @torch.no_grad()
    def rank_by(self, scorer: Scorer, part: str) -> Ranking:
        """Rank the targets of `part`, "validation" or "test", from the contexts that a recommender sees."""
        context = getattr(self.split, part).without_last(1)

        def users_of(users: np.ndarray) -> Tensor:
            sequences = context.last(self.split.max_seq_len, users)
            return scorer.users(torch.from_numpy(sequences).long().to(scorer.items.device))

        return self._rank_in_blocks(scorer.items, users_of, part)

    def _rank_in_blocks(self, items: Tensor | Scores, user_vectors, part: str) -> Ranking:
        with about_memory("ranking", f"give a smaller --eval_memory than {self.options.eval_memory} (MiB)"):
            return self._ranked(items, user_vectors, part)

    def _ranked(self, items: Tensor | Scores, user_vectors, part: str) -> Ranking:
        embeddings = items if isinstance(items, Tensor) else None
        if embeddings is not None:
            check_finite(embeddings, "item embeddings")
        ranker = Ranker(items, self.options.eval_memory * 2**20, self.options.mask_history, self.length)
        sequences: Sequences = getattr(self.split, part)
        history = self.split.history(part)
        ranks, margins = torch.zeros(2, len(sequences), device=items.device)
        lists = torch.zeros(len(sequences), self.length, dtype=torch.int32, device=items.device)
        blocks = self._mine(range(0, len(sequences), USERS_AT_ONCE))
        for start in self._progress(blocks, blocks, f"rank users, {part}"):
            users = np.arange(start, min(start + USERS_AT_ONCE, len(sequences)))
            vectors = user_vectors(users)
            check_finite(vectors, "user vectors")
            on_device = (
                torch.from_numpy(array).long().to(items.device)
                for array in (sequences.only_last(1).flat(users), history.flat(users), history.owners(users))
            )
            block = slice(start, start + len(users))
            ranks[block], margins[block], lists[block] = ranker.rank(vectors, *on_device)
        return Ranking(
            self.world.sum(ranks).cpu().numpy().astype(np.float64),
            self.world.sum(lists).cpu().numpy() if self.length else None,
            self.split.item_count,
            self.split.train_counts()[1:] if self.length else None,
            embeddings.cpu().numpy() if embeddings is not None and self.needs_embeddings else None,
            self.world.sum(margins).cpu().numpy(),
        )

    def _mine(self, blocks: range) -> range:
        """This rank's share of the blocks."""
        return blocks[self.world.rank :: self.world.size]

    def _progress(self, work: Iterable, blocks: range, what: str) -> Bar:
        """`work`, with a bar on the main rank once it takes a while."""
        return Bar(
            work, total=len(blocks), desc=what, unit="block", delay=1, leave=False, disable=not self.world.is_main
        )


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise TransrecError for embeddings or user vectors that are not finite."""
    if not torch.isfinite(tensor).all():
        raise _not_finite(what)


def _not_finite(what: str) -> TransrecError:
    return TransrecError(
        f"the model's {what} are not finite, so nothing can be ranked; lower the learning rates, or use "
        f"--precision fp32"
    )
