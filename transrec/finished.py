"""A finished run: recommendations, embeddings and metrics of its best epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args, overload

import numpy as np
import torch
from torch import Tensor

from transrec.data.catalog import Catalog, read_catalog
from transrec.data.dataset import Dataset
from transrec.data.interactions import Sequences, Split
from transrec.errors import TransrecError, about_memory
from transrec.models.recommender import Recommender
from transrec.options import MaskHistory, Options
from transrec.paths import file_sha256, resolve
from transrec.runner import load_best, read_dataset, reader_of
from transrec.settings import Settings, read_settings
from transrec.topk import top_items
from transrec.training.distributed import World
from transrec.training.evaluation import USERS_AT_ONCE, Evaluator, check_finite
from transrec.training.metrics import PAPERS, Metric, Ranking
from transrec.training.precision import Precision
from transrec.training.ranks import target_ranks
from transrec.training.run import read_options

MOST_NAMED = 3
MASKS = get_args(MaskHistory)


@dataclass(frozen=True)
class Recommendations:
    """What is recommended to one user, best first; fewer than k where the user has seen nearly all items.

    Attributes:
        ids: of the items, as the items file has them.
        scores: float32 [k], inner products of user vector and item embeddings.
        titles: of the items; empty where the items file has none.
    """

    ids: list[str]
    scores: np.ndarray
    titles: list[str]


class FinishedRun(Recommender):
    """The recommender of a finished run at its best epoch, in eval mode, which can be asked for recommendations.

    It ranks the items that the run ranked, and those that `add_items` adds. `.to("cuda")` moves it to a GPU.

    Args:
        folder: of the run.
        plugins: files that may run, among them all that the run was started with by --plugin.
        dataset: folder of the dataset as it is now, where it is not what the run was trained on.

    Attributes:
        folder: of the run.
        settings: what the run was started with.

    Raises TransrecError when the run, a plugin, or the base it needs, is missing or has changed.
    """

    def __init__(
        self, folder: str | Path, plugins: Sequence[str | Path] = (), dataset: str | Path | None = None
    ) -> None:
        settings = read_settings(folder, plugins)
        recommender, before = load_best(folder, settings)
        super().__init__(recommender.item_encoder, recommender.user_encoder, recommender.objective)
        self.method, self.saved_buffers = recommender.method, recommender.saved_buffers
        self.folder, self._before, self._moved = resolve(folder), before, dataset is not None
        self.settings = settings if dataset is None else _moved(settings, resolve(dataset))
        self._added: list[_Added] = []
        self._embeddings: Tensor | None = None
        self.eval()

    def _apply(self, fn: Any, recurse: bool = True) -> "FinishedRun":
        # Whatever moves or converts weights: what was computed by them is computed anew.
        self._embeddings = None
        return super()._apply(fn, recurse)

    @cached_property
    def dataset(self) -> Dataset:
        """What the run was trained and evaluated on, read anew. Raises TransrecError where it is missing or changed."""
        dataset = read_dataset(self.settings)
        by_number = "id" in self.settings.modalities
        known = set(read_options(self.folder).get("files", {}).values())
        for path in (dataset.catalog.path, dataset.interactions.path) if known else ():
            if file_sha256(path) in known or (self._moved and not by_number):
                continue
            remedy = "restore it" if by_number else "restore it, or give the dataset as it is now (--dataset)"
            raise TransrecError(f"{path}: has changed since {self.folder} was trained on it; {remedy}")
        return dataset

    @property
    def ids(self) -> list[str]:
        """The n items that are ranked: of item i, from 0, its id."""
        return self._table[0]

    @property
    def titles(self) -> list[str]:
        """[n], empty where the items file has none."""
        return self._table[1]

    @property
    def index(self) -> dict[str, int]:
        """The place of each id in `ids`."""
        return self._table[2]

    @property
    def catalog(self) -> Catalog:
        """The items that are ranked, in their order."""
        return replace(self.dataset.catalog, ids=self.ids, texts=self.titles)

    @cached_property
    def _table(self) -> tuple[list[str], list[str], dict[str, int]]:
        catalog, rows = self.dataset.catalog, self.dataset.split.item_rows
        ids, titles = ([of[row] for row in rows] for of in (catalog.ids, catalog.texts))
        for added in self._added:
            ids += [added.catalog.ids[row] for row in added.rows]
            titles += [added.catalog.texts[row] for row in added.rows]
        return ids, titles, {item: place for place, item in enumerate(ids)}

    def add_items(
        self, items: str | Path, images: str | Path | None = None, vectors: str | Path | None = None
    ) -> list[str]:
        """Rank further items, such as came after training, too. They are encoded, and nothing is trained.

        Args:
            items: an items file of the form of the dataset's; those of its items that are ranked already stay as they
                are.
            images: the store of their images, where the run reads images.
            vectors: the file of their vectors, where the run reads vectors.

        Returns:
            The ids that are new.

        Raises TransrecError for a run over item IDs, for a damaged file, and where an image or vector is missing.
        """
        if "id" in self.settings.modalities:
            raise TransrecError(
                f"{items}: {self.folder} reads items by their IDs, and an ID has an embedding only where it was there "
                f"in training; add items to a run over text, image or vector"
            )
        catalog, known = read_catalog(resolve(items)), self.index
        rows = np.array([row for row, item in enumerate(catalog.ids) if item not in known], dtype=np.int64)
        if len(rows):
            given = {"images": images, "vectors": vectors}
            paths = {name: str(resolve(path)) for name, path in given.items() if path is not None}
            added = _Added(catalog, rows, with_values(self.settings, **paths))
            # What is wrong with them is said before they are ranked.
            embeddings = torch.cat([self.embeddings, self._encoded(added)])
            self._added.append(added)
            self.__dict__.pop("_table", None)
            self._embeddings = embeddings
        return [catalog.ids[row] for row in rows]

    @property
    def embeddings(self) -> Tensor:
        """Of all items that are ranked, float32 [n, d], on the device of the weights; computed when first asked for.

        Raises TransrecError for a dataset that is missing or has changed, and embeddings that are not finite.
        """
        if self._embeddings is None:
            self._embeddings = torch.cat([self._encoded(part) for part in (None, *self._added)])
        return self._embeddings

    def _encoded(self, added: "_Added | None") -> Tensor:
        dataset, settings = self.dataset, self.settings
        if added is not None:
            split = replace(dataset.split, item_rows=added.rows)
            dataset, settings = replace(dataset, catalog=added.catalog, split=split), added.settings
        with about_memory("encoding the items", "use a machine with more"):
            reader, features = reader_of(self, self._before, settings, dataset, self._world)
            embeddings = Evaluator(dataset.split, features, settings.evaluation, *self._device).encode_items(reader)
        check_finite(embeddings, "item embeddings")
        return embeddings

    @property
    def _world(self) -> World:
        return World(0, 1, next(self.parameters()).device)

    @property
    def _device(self) -> tuple[World, Precision]:
        return self._world, Precision(self.settings.training.precision, self._world.device)

    def embed(self, items: Sequence[str]) -> np.ndarray:
        """Embeddings of items by their ids: float32 [n, d], as user vectors are multiplied with them.

        Raises TransrecError for an item that is not ranked.
        """
        rows = torch.from_numpy(self.numbers(items)).long().to(self.embeddings.device)
        return self.objective.scored(self.embeddings)[rows].cpu().numpy()

    def numbers(self, items: Sequence[str]) -> np.ndarray:
        """The place of each in `ids`: int32 [n]. Raises TransrecError for an item that is not ranked."""
        if isinstance(items, str):
            raise TransrecError(f"{items!r}: is one text; give a list of item ids")
        unknown = [item for item in items if item not in self.index]
        if unknown:
            named = ", ".join(map(repr, unknown[:MOST_NAMED])) + ", ..." * (len(unknown) > MOST_NAMED)
            raise TransrecError(f"item {named}: {self.unranked(unknown[0])}")
        return np.array([self.index[item] for item in items], dtype=np.int32)

    def unranked(self, item: str) -> str:
        """Why an item is not ranked, and what to do."""
        path = self.dataset.catalog.path
        if item in self._listed:
            return f"{path} lists it, but no user that {self.folder} kept has it; add it with --items {path}"
        return f"neither {path} lists it nor a further items file (--items); check the id"

    @cached_property
    def _listed(self) -> set[str]:
        return set(self.dataset.catalog.ids)

    @overload
    def recommend(self, history: Sequence[str], k: int = 10, exclude_seen: bool = True) -> Recommendations: ...
    @overload
    def recommend(
        self, history: Sequence[Sequence[str]], k: int = 10, exclude_seen: bool = True
    ) -> list[Recommendations]: ...
    def recommend(self, history, k=10, exclude_seen=True):
        """The k items that score highest for one history, or for each of many.

        Args:
            history: item ids, oldest first, or a list of such lists. The last --max_seq_len of each are read.
            k: at most n, the number of items that are ranked.
            exclude_seen: whether items of the whole history are left out.

        Returns:
            Recommendations of the history, or a list of one for each. Of equal scores the item that stands first in the
            items file comes first.

        Raises TransrecError for an item that is not ranked, a history without items, and k below 1 or above n.
        """
        alone = all(isinstance(item, str) for item in history)
        histories = [self.numbers(of) for of in ([history] if alone else history)]
        for number, of in enumerate(histories, start=1):
            if not len(of):
                which = "the history" if alone else f"history {number}"
                raise TransrecError(f"{which} is empty; give at least one item id")
        found = [
            self.named(scores, items)
            for block in self.top(sequences_of(histories), k, exclude_seen)
            for scores, items in zip(*block, strict=True)
        ]
        return found[0] if alone else found

    @torch.no_grad()
    def neighbours(self, item: str, k: int = 10) -> Recommendations:
        """The k items whose embeddings have the highest cosine with that of an item, which is left out itself.

        Args:
            k: at most n, the number of items that are ranked.

        Returns:
            The items, and as scores the cosines.

        Raises TransrecError for an item that is not ranked, and k below 1 or above n.
        """
        self._check_k(k)
        itself = torch.from_numpy(self.numbers([item])).long().to(self.embeddings.device)
        unit = torch.nn.functional.normalize(self.objective.scored(self.embeddings), dim=1)
        seen = itself, torch.zeros_like(itself)
        scores, found = top_items(unit[itself], unit, seen, k, self.settings.evaluation.eval_memory * 2**20)
        return self.named(scores[0].cpu().numpy(), found[0].cpu().numpy())

    def named(self, scores: np.ndarray, items: np.ndarray) -> Recommendations:
        """A user's row of what `top` gives."""
        real = scores > -np.inf
        items = items[real]
        return Recommendations([self.ids[i] for i in items], scores[real], [self.titles[i] for i in items])

    def top(self, histories: Sequences, k: int, exclude_seen: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `recommend`, for any number of users: block by block of users, in memory that does not grow with them.

        Args:
            histories: items by their place in `ids`, at least one for each user.

        Yields:
            float32 [B, k] scores, minus infinity where no item is left, and int64 [B, k] places in `ids`.

        Raises TransrecError for k below 1 or above n, and user vectors that are not finite.
        """
        return self._top(histories, histories if exclude_seen else None, k)

    def top_of(
        self, part: str, k: int, mask_history: str | None = None, targets: np.ndarray | slice = slice(None)
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What is ranked highest for each target of "validation" or "test", as `top`: what evaluation ranks.

        Args:
            mask_history: as of `evaluate`.
            targets: which of the targets, by their places in `Split.targets` (default: all).

        Raises TransrecError as `top` and `evaluate`.
        """
        _check_asked(part, mask_history)
        history = self.dataset.split.history(part).of(targets)
        history = replace(history, values=history.values - 1)
        mask = mask_history or self.settings.evaluation.mask_history
        if mask == "seen_but_target":
            items = getattr(self.dataset.split, part).only_last(1).flat(targets) - 1
            return self._top(history, _without(history, items), k)
        return self._top(history, history if mask == "seen" else None, k)

    @torch.no_grad()
    def _top(self, histories: Sequences, left_out: Sequences | None, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `top`; `left_out` are the items that are not recommended, of each user by their places in `ids`."""
        self._check_k(k)
        items, evaluation = self.embeddings, self.settings.evaluation
        scored = self.objective.scored(items)
        evaluator = Evaluator(self.dataset.split, cast(Any, None), evaluation, *self._device)
        numbered = replace(histories, values=histories.values + 1)
        for start in range(0, len(histories), USERS_AT_ONCE):
            users = np.arange(start, min(start + USERS_AT_ONCE, len(histories)))
            vectors = evaluator.encode_users(self, items, numbered.last(self.settings.data.max_seq_len, users))
            check_finite(vectors, "user vectors")
            hidden = (np.empty(0, np.int64),) * 2
            if left_out is not None:
                hidden = left_out.flat(users), left_out.owners(users)
            seen, owner = (torch.from_numpy(of).long().to(items.device) for of in hidden)
            scores, found = top_items(vectors, scored, (seen, owner), k, evaluation.eval_memory * 2**20)
            yield scores.cpu().numpy(), found.cpu().numpy()

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= len(self.ids):
            raise TransrecError(f"--k {k}: must be at least 1 and at most {len(self.ids):,}, the items that are ranked")

    def evaluate(
        self,
        part: str = "test",
        histories: Sequence[Sequence[str]] | Sequences | None = None,
        mask_history: str | None = None,
    ) -> dict[str, float]:
        """The run's metrics by name, such as HR@10, on targets of its dataset or of other histories.

        Without `add_items`, `histories` and `mask_history` these are the numbers of result.json.

        Args:
            part: "validation" or "test".
            histories: if given, their last items are the targets, and what stands before is the context: cold items
                are evaluated by histories that end in them. Item ids, or items by their place in `ids`.
            mask_history: "seen", "none" or "seen_but_target" (docs/protocol.md); None: as the run was told.

        Raises TransrecError for another part or mask, a history of fewer than two items, and an item not ranked.
        """
        metrics = [choice.build() for choice in self.settings.choices["metrics"]]
        evaluator, part = self._evaluator(part, histories, mask_history, metrics)
        return evaluator.summarise(evaluator.rank(self, part, self.embeddings))

    def ranking(
        self, part: str, metrics: Sequence[Metric], cutoffs: Sequence[int], mask_history: str | None = None
    ) -> Ranking:
        """What metrics at cut-offs are computed of, ranked anew among all items that are ranked now.

        Args:
            part, mask_history: as of `evaluate`.

        Raises TransrecError for another part or mask.
        """
        evaluator, part = self._evaluator(part, None, mask_history, metrics, cutoffs)
        return evaluator.rank(self, part, self.embeddings)

    def ranks(self, part: str = "test", mask_history: str | None = None) -> np.ndarray:
        """What a run keeps of its targets, ranked anew among all items that are ranked now: RANK [T].

        Args:
            part, mask_history: as of `evaluate`.

        Raises TransrecError for another part or mask.
        """
        ranking = self.ranking(part, PAPERS, self.settings.evaluation.cutoffs, mask_history)
        return target_ranks(self.dataset.split, part, ranking.ranks, ranking.margins)

    def _evaluator(
        self,
        part: str,
        histories: Sequence[Sequence[str]] | Sequences | None,
        mask_history: str | None,
        metrics: Sequence[Metric],
        cutoffs: Sequence[int] = (),
    ) -> tuple[Evaluator, str]:
        """What evaluates, and the part of its split that the targets are."""
        _check_asked(part, mask_history)
        catalogue, added = self.dataset.split.item_rows, len(self.ids) - self.dataset.split.item_count
        rows = len(self.dataset.catalog.ids) + np.arange(added)
        split = replace(self.dataset.split, item_rows=np.concatenate([catalogue, rows]))
        if histories is not None:
            if not isinstance(histories, Sequences):
                histories = sequences_of([self.numbers(of) for of in histories])
            split, part = _with_targets(split, histories), "test"
        options = self.settings.evaluation
        cutoffs = list(cutoffs or options.cutoffs)
        options = replace(options, mask_history=mask_history or options.mask_history, cutoffs=cutoffs)
        return Evaluator(split, cast(Any, None), options, *self._device, metrics), part


@dataclass(frozen=True)
class _Added:
    """Items that were added: rows of a catalogue, and the settings that say where their images or vectors are."""

    catalog: Catalog
    rows: np.ndarray
    settings: Settings


def load_run(folder: str | Path, plugins: Sequence[str | Path] = (), dataset: str | Path | None = None) -> FinishedRun:
    """A finished run at its best epoch, in eval mode on the CPU: a recommender to ask, and a torch module.

    Args:
        plugins: files that may run, among them all that the run was started with by --plugin.
        dataset: folder of the dataset, where it has moved or grown since.

    Raises TransrecError when the run, a plugin, or the base it needs, is missing or has changed.
    """
    return FinishedRun(folder, plugins, dataset)


def _check_asked(part: str, mask_history: str | None) -> None:
    """Raise TransrecError for a part or a mask that there is none."""
    if part not in ("validation", "test"):
        raise TransrecError(f"part {part!r}: must be validation or test")
    if mask_history not in (None, *MASKS):
        raise TransrecError(f"mask_history {mask_history!r}: must be one of {', '.join(MASKS)}")


def _without(sequences: Sequences, items: np.ndarray) -> Sequences:
    """Each sequence less the one of `items` that is its own, however often it stands there."""
    values, owners = sequences.flat(), sequences.owners()
    others = values != items[owners]
    stops = np.cumsum(np.bincount(owners[others], minlength=len(sequences)))
    return Sequences(values[others], np.concatenate([np.zeros(1, np.int64), stops[:-1]]), stops)


def sequences_of(histories: Sequence[np.ndarray]) -> Sequences:
    """Histories of items by number, one after the other."""
    stops = np.cumsum([len(of) for of in histories], dtype=np.int64)
    values = np.concatenate([np.empty(0, np.int32), *histories]).astype(np.int32)
    return Sequences(values, np.concatenate([np.zeros(1, np.int64), stops[:-1]])[: len(stops)], stops)


def _moved(settings: Settings, dataset: Path) -> Settings:
    """The same settings, over a dataset that lies in another folder."""
    data = settings.data
    named = {"users_file": data.users_file, "items_file": data.items_file}
    return with_values(
        settings, dataset=str(dataset), **{flag: Path(name).name for flag, name in named.items() if name}
    )


def with_values(settings: Settings, **values: str) -> Settings:
    """The same settings, with other values of those flags that they have."""

    def change(options: Options) -> Options:
        mine = {name: value for name, value in values.items() if name in options.as_dict()}
        return replace(options, **mine) if mine else options

    return settings.changed(change)


def _with_targets(split: Split, histories: Sequences) -> Split:
    """The same split, trained on what it is trained on, whose one test target each is the last item of a history."""
    short = np.flatnonzero(histories.lengths < 2)
    if len(short) or not len(histories):
        which = f"history {short[0] + 1} has {histories.lengths[short[0]]}" if len(short) else "there is no history"
        raise TransrecError(f"{which}: to be evaluated it must hold the target and at least one item before it")
    old = split.kept
    values, lengths = histories.flat() + 1, histories.lengths
    stops = len(old.values) + np.cumsum(lengths)
    return replace(
        split,
        user_rows=np.concatenate([split.user_rows, np.full(len(stops), -1)]),
        kept=Sequences(
            np.concatenate([old.values, values.astype(old.values.dtype)]),
            np.concatenate([old.starts, stops - lengths]),
            np.concatenate([old.stops, stops]),
        ),
        # Of the run's own users nothing is a target here.
        validation_starts=np.concatenate([split.validation_starts, stops - 1]),
        test_starts=np.concatenate([old.stops, stops - 1]),
        times=None,
    )
