"""Full ranking of every item for every user, in blocks of bounded memory (docs/protocol.md).

Users and items are divided into blocks by position, not by rank. The number of processes that share the blocks changes
no block, and each user is ranked exactly once.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from transrec.data.features import Features, read_blocks_ahead
from transrec.data.groups import group_inputs
from transrec.data.interactions import Sequences, Split
from transrec.errors import TransrecError, about_memory
from transrec.models.recommender import Recommender
from transrec.options import EvaluationOptions
from transrec.progress import Bar
from transrec.seeds import seed
from transrec.topk import top_scores
from transrec.training.distributed import World
from transrec.training.metrics import PAPERS, Metric, Ranking, intervals, summarise
from transrec.training.precision import Precision
from transrec.training.sharding import is_sharded

USERS_AT_ONCE = 256


class Scores(Protocol):
    """Scores of items 1..n that are not inner products."""

    device: torch.device

    def __len__(self) -> int:
        """Return the number of items n."""
        ...

    def score(self, users: Tensor, out: Tensor) -> None:
        """Write the scores of B users into `out`, float32 [B, n]."""
        ...


@dataclass(frozen=True)
class Scorer:
    """Ranks items without a recommender: item vectors or scores, and a function from contexts to users.

    Attributes:
        items: item vectors float32 [n, d], whose inner products with user vectors are the scores; or a `Scores`.
        users: maps contexts int64 [B, L], left-padded with 0, to user vectors [B, d], or to whatever representation
            `items` can score.
    """

    items: Tensor | Scores
    users: Callable[[Tensor], Tensor]


class Ranked(NamedTuple):
    """The results of a `Ranker` for B users.

    Attributes:
        ranks: float32 [B], exact up to 2**24: 1 + the number of items that score strictly higher than the target + half
            the number of other items with an equal score, rounded up; infinity if the target itself is masked.
        margins: float32 [B], the target's score minus the highest score of the other unmasked items: minus infinity if
            the target is masked, infinity if all other items are masked.
        lists: int32 [B, length], the items 1..n with the highest scores, best first, ties in order of item number; 0
            in places for which no unmasked item is left.
    """

    ranks: Tensor
    margins: Tensor
    lists: Tensor


class Ranker:
    """Ranks targets among all items, one block of users at a time.

    Args:
        items: vectors float32 [n, d] of items 1..n, whose inner products with user vectors are the scores; or a
            `Scores`.
        memory: maximum number of bytes for the scores of a block of users. A block holds at least one user.
        mask_history: "seen", "none" or "seen_but_target" (docs/protocol.md).
        length: length of the lists of recommended items, at most n; 0: no lists.
    """

    def __init__(self, items: Tensor | Scores, memory: int, mask_history: str, length: int = 0):
        self.score = partial(_products, items) if isinstance(items, Tensor) else items.score
        self.mask_history, self.length = mask_history, length
        count = len(items)
        self.rows = min(USERS_AT_ONCE, max(1, memory // (2 * torch.float32.itemsize * count)))
        self.scores = torch.empty(self.rows, count, device=items.device)
        self.differences = torch.empty_like(self.scores)

    def ranks(self, users: Tensor, targets: Tensor, history: Tensor, owner: Tensor) -> Tensor:
        """Return only the ranks that `rank` computes."""
        return self.rank(users, targets, history, owner).ranks

    def rank(self, users: Tensor, targets: Tensor, history: Tensor, owner: Tensor) -> Ranked:
        """Rank each user's target among all items.

        Args:
            users: user vectors float32 [B, d], or whatever representation `items` can score.
            targets: int64 [B], item numbers 1..n.
            history, owner: int64 [H], seen items, and for each the row of `users` that it belongs to.

        Raises TransrecError if the scores are not finite.
        """
        if self.mask_history == "none":
            history, owner = history[:0], owner[:0]
        elif self.mask_history == "seen_but_target":
            not_target = history != targets[owner]
            history, owner = history[not_target], owner[not_target]
        ranks, margins = torch.empty(2, len(users), device=users.device)
        lists = torch.empty(len(users), self.length, dtype=torch.int32, device=users.device)
        for start in range(0, len(users), self.rows):
            block = slice(start, min(start + self.rows, len(users)))
            in_block = (owner >= block.start) & (owner < block.stop)
            results = self._block(users[block], targets[block], history[in_block], owner[in_block] - start)
            ranks[block], margins[block] = results
            if self.length:
                lists[block] = self._lists(len(ranks[block]))
        return Ranked(ranks, margins, lists)

    def _lists(self, users: int) -> Tensor:
        """Return the top items of the block that was ranked last: int32 [B, length]."""
        scores, items = top_scores(self.scores[:users], self.length)
        return torch.where(scores == -torch.inf, 0, items + 1).int()

    def _block(self, users: Tensor, targets: Tensor, history: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        # Preallocated float buffers make this fast; summing a boolean matrix would be slow.
        scores, differences = self.scores[: len(users)], self.differences[: len(users)]
        self.score(users, scores)
        places = (targets - 1).unsqueeze(1)
        target = scores.gather(1, places)
        scores[owner, history - 1] = -torch.inf
        torch.sub(scores, target, out=differences).scatter_(1, places, -torch.inf)
        margins = -differences.amax(1)
        if margins.isnan().any():
            raise _not_finite("scores")
        # Each other item's sign is 1 if it scores higher, -1 if lower and 0 if equal; the target's own sign is -1. The
        # sum of signs plus n is thus twice the number of higher items plus the number of equal ones.
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
        options: cut-offs, memory, and the items that are masked in a ranking.
        metrics: the metrics to compute.
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
        """Return the embeddings of items 1..n, float32 [n, d], on every rank."""
        batch, count = self.options.eval_batch, self.split.item_count
        embeddings = torch.zeros(count, recommender.user_encoder.width, device=self.world.device)
        blocks = self._own_blocks(range(0, count, batch))
        work = read_blocks_ahead(blocks, batch, count, self.features)
        with torch.random.fork_rng(devices=[self.world.device] if self.world.device.type == "cuda" else []):
            for items, read in self._progress(work, blocks, "encode items"):
                # What MAE masks depends on the block alone, not on what was drawn before or on other ranks.
                seed("encode items", int(items[0]))
                with self.precision.autocast():
                    encoded = group_inputs(self.features, items, read).encoded(recommender.item_encoder).float()
                embeddings[items[0] - 1 : items[-1]] = encoded
        if is_sharded(recommender):
            self._match_other_ranks(recommender, len(blocks), -(-len(range(0, count, batch)) // self.world.size))
        return self.world.sum(embeddings)

    def _match_other_ranks(self, recommender: Recommender, done: int, most: int) -> None:
        """Encode one item for each block that other ranks have in addition: they wait for this rank's weights."""
        for _ in range(done, most):
            with self.precision.autocast():
                group_inputs(self.features, torch.ones(1, dtype=torch.int64)).encoded(recommender.item_encoder)

    def evaluate(self, recommender: Recommender, part: str) -> dict[str, float]:
        """Return the metrics on `part`, "validation" or "test". Raises TransrecError like `rank`."""
        return self.summarise(self.rank(recommender, part))

    def summarise(self, ranking: Ranking) -> dict[str, float]:
        """Return the metrics of a ranking at the configured cut-offs.

        Metrics that need item embeddings are left out if the ranking has none.
        """
        possible = [metric for metric in self.metrics if ranking.embeddings is not None or not metric.needs_embeddings]
        return summarise(ranking, self.options.cutoffs, possible)

    def intervals(self, ranking: Ranking, part: str) -> dict[str, tuple[float, float]]:
        """Return 95 % intervals for the metrics of all users if the split evaluates a sample of them, else {}."""
        if (sample := self.split.evaluated_users) is None:
            return {}
        owners, _ = self.split.targets(part)
        return intervals(ranking, owners, len(sample), self.split.user_count, self.options.cutoffs, self.metrics)

    @torch.no_grad()
    def encode_users(self, recommender: Recommender, items: Tensor, sequences: np.ndarray) -> Tensor:
        """Return user vectors float32 [B, d] for the last items of B users.

        Args:
            items: float32 [n, d], embeddings of items 1..n.
            sequences: int [B, L], the last items of each user, left-padded with 0.
        """
        on_device = torch.from_numpy(sequences).long().to(items.device)
        mask = on_device > 0
        with self.precision.autocast():
            embeddings = items[(on_device - 1).clamp(min=0)] * mask.unsqueeze(-1)
            return recommender.user_encoder(embeddings, mask)[:, -1].float()

    @torch.no_grad()
    def rank(self, recommender: Recommender, part: str, items: Tensor | None = None) -> Ranking:
        """Rank the targets of `part`, "validation" or "test". All ranks get the same result.

        Args:
            items: the result of `encode_items`, if it was called before.

        Raises TransrecError if the model's embeddings, user vectors or scores are not finite.
        """
        was_training = recommender.training
        recommender.eval()
        if items is None:
            with about_memory("encoding the items", f"give a smaller --eval_batch than {self.options.eval_batch}"):
                items = self.encode_items(recommender)
        context = getattr(self.split, part).without_last(1)

        def user_vectors(users: np.ndarray) -> Tensor:
            vectors = self.encode_users(recommender, items, context.last(self.split.max_seq_len, users))
            return recommender.objective.scoring_users(vectors)

        ranking = self._rank_in_blocks(recommender.objective.scoring_embeddings(items), user_vectors, part)
        recommender.train(was_training)
        return ranking

    @torch.no_grad()
    def rank_by(self, scorer: Scorer, part: str) -> Ranking:
        """Rank the targets of `part`, "validation" or "test", with the contexts that a recommender would see."""
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
        blocks = self._own_blocks(range(0, len(sequences), USERS_AT_ONCE))
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

    def _own_blocks(self, blocks: range) -> range:
        """Return this rank's share of the blocks."""
        return blocks[self.world.rank :: self.world.size]

    def _progress(self, work: Iterable, blocks: range, what: str) -> Bar:
        """Wrap `work` in a progress bar, which the main rank shows once the work takes a while."""
        return Bar(
            work, total=len(blocks), desc=what, unit="block", delay=1, leave=False, disable=not self.world.is_main
        )


def check_finite(tensor: Tensor, what: str) -> None:
    """Raise TransrecError if embeddings or user vectors are not finite."""
    if not torch.isfinite(tensor).all():
        raise _not_finite(what)


def _not_finite(what: str) -> TransrecError:
    return TransrecError(
        f"the model's {what} are not finite, so nothing can be ranked; lower the learning rates, or use "
        f"--precision fp32"
    )
