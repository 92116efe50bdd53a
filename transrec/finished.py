"""Recommendations, embeddings and metrics of a finished run at its best epoch."""

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
from transrec.paths import resolve
from transrec.runner import item_reader, load_best, read_dataset, weights_key
from transrec.settings import Settings, read_settings
from transrec.topk import top_items
from transrec.training.distributed import World
from transrec.training.evaluation import USERS_AT_ONCE, Evaluator, check_finite
from transrec.training.metrics import PAPERS, Metric, Ranking
from transrec.training.precision import Precision
from transrec.training.ranks import target_ranks
from transrec.training.run import read_options

MAX_NAMED = 3
MASKS = get_args(MaskHistory)


@dataclass(frozen=True)
class Recommendations:
    """The items recommended to one user, best first; fewer than k if the user has seen nearly all items.

    Attributes:
        ids: the ids of the items, as in the items file.
        scores: float32 [k], inner products of the user vector and the item embeddings.
        titles: the titles of the items; empty strings if the items file has none.
    """

    ids: list[str]
    scores: np.ndarray
    titles: list[str]


class FinishedRun(Recommender):
    """The recommender of a finished run at its best epoch, in eval mode, with methods to recommend and evaluate.

    It ranks the items that the run ranked, and those that `add_items` adds. `.to("cuda")` moves it to a GPU.

    Args:
        folder: the folder of the run.
        plugins: plugin files that may be run, among them all that the run was started with (--plugin).
        dataset: the folder of the dataset as it is now, if that is not what the run was trained on.

    Attributes:
        folder: the folder of the run.
        settings: the settings that the run was started with, but with the paths of `dataset` if that is given.

    Raises TransrecError if the run, a plugin, or a backbone or checkpoint that the run needs is missing or has changed.
    """

    def __init__(
        self, folder: str | Path, plugins: Sequence[str | Path] = (), dataset: str | Path | None = None
    ) -> None:
        settings = read_settings(folder, plugins)
        recommender, structures = load_best(folder, settings)
        super().__init__(recommender.item_encoder, recommender.user_encoder, recommender.objective)
        self.method, self.saved_buffers = recommender.method, recommender.saved_buffers
        self.folder, self._structures, self._is_moved = resolve(folder), structures, dataset is not None
        self.settings = settings if dataset is None else _with_dataset(settings, resolve(dataset))
        self._added: list[_Added] = []
        self._embeddings: Tensor | None = None
        self.eval()

    def _apply(self, fn: Any, recurse: bool = True) -> "FinishedRun":
        # torch calls this to move or convert weights. The embeddings must then be computed again.
        self._embeddings = None
        return super()._apply(fn, recurse)

    @cached_property
    def dataset(self) -> Dataset:
        """The run's dataset, read at the first access. Raises TransrecError if it is missing or has changed."""
        dataset = read_dataset(self.settings)
        by_number = "id" in self.settings.modalities
        known = set(self._files.values())
        for path, digest in dataset.hashes().items() if known else ():
            if digest in known or (self._is_moved and not by_number):
                continue
            remedy = "restore it" if by_number else "restore it, or give the dataset as it is now (--dataset)"
            raise TransrecError(f"{path}: has changed since {self.folder} was trained on it; {remedy}")
        return dataset

    @property
    def _files(self) -> dict[str, str]:
        """The SHA-256 of each data file of the run, by path."""
        return read_options(self.folder).get("files", {})

    @property
    def ids(self) -> list[str]:
        """The ids of the n ranked items, in their order."""
        return self._table[0]

    @property
    def titles(self) -> list[str]:
        """The titles of the ranked items, [n]; empty strings if the items file has none."""
        return self._table[1]

    @property
    def index(self) -> dict[str, int]:
        """The position of each id in `ids`, from 0."""
        return self._table[2]

    @property
    def catalog(self) -> Catalog:
        """The ranked items, in their order."""
        return replace(self.dataset.catalog, ids=self.ids, texts=self.titles)

    @cached_property
    def _table(self) -> tuple[list[str], list[str], dict[str, int]]:
        catalog, rows = self.dataset.catalog, self.dataset.split.item_rows
        ids, titles = ([column[row] for row in rows] for column in (catalog.ids, catalog.texts))
        for added in self._added:
            ids += [added.catalog.ids[row] for row in added.rows]
            titles += [added.catalog.texts[row] for row in added.rows]
        return ids, titles, {item: place for place, item in enumerate(ids)}

    def add_items(
        self, items: str | Path, images: str | Path | None = None, vectors: str | Path | None = None
    ) -> list[str]:
        """Add items to those that are ranked, such as items that appeared after training. Nothing is trained.

        Args:
            items: an items file in the format of the dataset's. Items in it that are ranked already do not change.
            images: the store of the items' images, if the run reads images.
            vectors: the file of the items' vectors, if the run reads vectors.

        Returns:
            The ids of the new items.

        Raises TransrecError for a run over item IDs, for a damaged file, and if an image or vector is missing.
        """
        if "id" in self.settings.modalities:
            raise TransrecError(
                f"{items}: {self.folder} reads items by their IDs, and an ID has an embedding only where it was there "
                f"in training; add items to a run over text, image or vector"
            )
        catalog, known = read_catalog(resolve(items)), self.index
        rows = np.array([row for row, item in enumerate(catalog.ids) if item not in known], dtype=np.int64)
        if len(rows):
            sources = {"images": images, "vectors": vectors}
            paths = {name: str(resolve(path)) for name, path in sources.items() if path is not None}
            added = _Added(catalog, rows, with_values(self.settings, **paths))
            # Encode the items before adding them, so that nothing is added if this raises an error.
            embeddings = torch.cat([self.embeddings, self._encode(added)])
            self._added.append(added)
            self.__dict__.pop("_table", None)
            self._embeddings = embeddings
        return [catalog.ids[row] for row in rows]

    @property
    def embeddings(self) -> Tensor:
        """The embeddings of all ranked items, float32 [n, d], on the device of the weights; computed on first use.

        Raises TransrecError if the dataset is missing or has changed, and if embeddings are not finite.
        """
        if self._embeddings is None:
            self._embeddings = torch.cat([self._encode(part) for part in (None, *self._added)])
        return self._embeddings

    def _encode(self, added: "_Added | None") -> Tensor:
        dataset, settings, files = self.dataset, self.settings, self._files
        if added is not None:
            split = replace(dataset.split, item_rows=added.rows)
            dataset, settings = replace(dataset, catalog=added.catalog, split=split), added.settings
            # Added items have files of their own, but are read by the same backbones.
            encoders = {weights_key(modality) for modality in settings.modalities.values()}
            files = {path: digest for path, digest in files.items() if path in encoders}
        with about_memory("encoding the items", "use a machine with more"):
            reader, features = item_reader(self, self._structures, settings, dataset, self._world, files)
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
        """Return embeddings of items by their ids, in the form that is multiplied with user vectors: float32 [N, d].

        Raises TransrecError for an item that is not ranked.
        """
        rows = torch.from_numpy(self.positions(items)).long().to(self.embeddings.device)
        return self.objective.scoring_embeddings(self.embeddings)[rows].cpu().numpy()

    def positions(self, items: Sequence[str]) -> np.ndarray:
        """Return the position of each item in `ids`: int32 [N]. Raises TransrecError for an item that is not ranked."""
        if isinstance(items, str):
            raise TransrecError(f"{items!r}: is one text; give a list of item ids")
        unknown = [item for item in items if item not in self.index]
        if unknown:
            named = ", ".join(map(repr, unknown[:MAX_NAMED])) + ", ..." * (len(unknown) > MAX_NAMED)
            raise TransrecError(f"item {named}: {self.why_unranked(unknown[0])}")
        return np.array([self.index[item] for item in items], dtype=np.int32)

    def why_unranked(self, item: str) -> str:
        """Return why an item is not ranked, and what to do about it."""
        path = self.dataset.catalog.path
        if item in self._catalogue_ids:
            return f"{path} lists it, but no user that {self.folder} kept has it; add it with --items {path}"
        return f"neither {path} lists it nor a further items file (--items); check the id"

    @cached_property
    def _catalogue_ids(self) -> set[str]:
        return set(self.dataset.catalog.ids)

    @overload
    def recommend(self, history: Sequence[str], k: int = 10, exclude_seen: bool = True) -> Recommendations: ...
    @overload
    def recommend(
        self, history: Sequence[Sequence[str]], k: int = 10, exclude_seen: bool = True
    ) -> list[Recommendations]: ...
    def recommend(self, history, k=10, exclude_seen=True):
        """Recommend the k items that score highest for one history, or for each of several histories.

        Args:
            history: item ids, oldest first, or a list of such lists. The last --max_seq_len of each are read.
            k: at most n, the number of ranked items.
            exclude_seen: whether to leave out all items of the history, including those that are too old to be read.

        Returns:
            Recommendations for the history, or a list with those for each history. Items with equal scores are in the
            order of the items file.

        Raises TransrecError for an item that is not ranked, an empty history, and k below 1 or above n.
        """
        is_single = all(isinstance(item, str) for item in history)
        histories = [self.positions(sequence) for sequence in ([history] if is_single else history)]
        for number, sequence in enumerate(histories, start=1):
            if not len(sequence):
                which = "the history" if is_single else f"history {number}"
                raise TransrecError(f"{which} is empty; give at least one item id")
        results = [
            self.to_recommendations(scores, items)
            for block in self.top(sequences_of(histories), k, exclude_seen)
            for scores, items in zip(*block, strict=True)
        ]
        return results[0] if is_single else results

    @torch.no_grad()
    def neighbours(self, item: str, k: int = 10) -> Recommendations:
        """Return the k items whose embeddings have the highest cosine similarity to an item's, without the item itself.

        Args:
            k: at most n, the number of ranked items.

        Returns:
            The items, with cosine similarities as scores.

        Raises TransrecError for an item that is not ranked, and k below 1 or above n.
        """
        self._check_k(k)
        row = torch.from_numpy(self.positions([item])).long().to(self.embeddings.device)
        unit = torch.nn.functional.normalize(self.objective.scoring_embeddings(self.embeddings), dim=1)
        seen = row, torch.zeros_like(row)
        scores, places = top_items(unit[row], unit, seen, k, self.settings.evaluation.eval_memory * 2**20)
        return self.to_recommendations(scores[0].cpu().numpy(), places[0].cpu().numpy())

    def to_recommendations(self, scores: np.ndarray, items: np.ndarray) -> Recommendations:
        """Return the recommendations in one user's row of the results of `top`."""
        real = scores > -np.inf
        items = items[real]
        return Recommendations([self.ids[i] for i in items], scores[real], [self.titles[i] for i in items])

    def top(self, histories: Sequences, k: int, exclude_seen: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield recommendations, like those of `recommend`, for any number of users, in blocks that bound the memory.

        Args:
            histories: items as positions in `ids`, at least one item for each user.

        Yields:
            For each block, float32 [B, k] scores, minus infinity if no item is left, and int64 [B, k] positions in
            `ids`.

        Raises TransrecError for k below 1 or above n, and user vectors that are not finite.
        """
        return self._top(histories, histories if exclude_seen else None, k)

    def top_for_targets(
        self, part: str, k: int, mask_history: str | None = None, targets: np.ndarray | slice = slice(None)
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the highest ranked items for each target of "validation" or "test", as evaluation ranks them.

        Args:
            mask_history: as in `evaluate`.
            targets: which of the targets, as positions in `Split.targets` (default: all).

        Yields the same as `top`. Raises TransrecError for the same reasons as `top` and `evaluate`.
        """
        _check_part_and_mask(part, mask_history)
        history = self.dataset.split.history(part).select(targets)
        history = replace(history, values=history.values - 1)
        mask = mask_history or self.settings.evaluation.mask_history
        if mask == "seen_but_target":
            items = getattr(self.dataset.split, part).only_last(1).flat(targets) - 1
            return self._top(history, _without(history, items), k)
        return self._top(history, history if mask == "seen" else None, k)

    @torch.no_grad()
    def _top(self, histories: Sequences, left_out: Sequences | None, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Do the work of `top`. `left_out`: the items not to recommend to each user, as positions in `ids`."""
        self._check_k(k)
        items, evaluation = self.embeddings, self.settings.evaluation
        scored = self.objective.scoring_embeddings(items)
        evaluator = Evaluator(self.dataset.split, cast(Any, None), evaluation, *self._device)
        numbered = replace(histories, values=histories.values + 1)
        for start in range(0, len(histories), USERS_AT_ONCE):
            users = np.arange(start, min(start + USERS_AT_ONCE, len(histories)))
            vectors = evaluator.encode_users(self, items, numbered.last(self.settings.data.max_seq_len, users))
            vectors = self.objective.scoring_users(vectors)
            check_finite(vectors, "user vectors")
            excluded = (np.empty(0, np.int64),) * 2
            if left_out is not None:
                excluded = left_out.flat(users), left_out.owners(users)
            seen, owner = (torch.from_numpy(array).long().to(items.device) for array in excluded)
            scores, places = top_items(vectors, scored, (seen, owner), k, evaluation.eval_memory * 2**20)
            yield scores.cpu().numpy(), places.cpu().numpy()

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= len(self.ids):
            raise TransrecError(f"--k {k}: must be at least 1 and at most {len(self.ids):,}, the items that are ranked")

    def evaluate(
        self,
        part: str = "test",
        histories: Sequence[Sequence[str]] | Sequences | None = None,
        mask_history: str | None = None,
    ) -> dict[str, float]:
        """Return the run's metrics by name, such as HR@10, on targets of its dataset or of other histories.

        Without `add_items`, `histories` and `mask_history`, these are the numbers of result.json.

        Args:
            part: "validation" or "test".
            histories: item ids, or items as positions in `ids`. If given, the last item of each history is its target,
                and the items before it are the context. To evaluate cold items, give histories that end in them.
            mask_history: "seen", "none" or "seen_but_target" (docs/protocol.md); None: the value that the run used.

        Raises TransrecError for another part or mask, a history with fewer than two items, and an unranked item.
        """
        metrics = [choice.build() for choice in self.settings.choices["metrics"]]
        evaluator, part = self._evaluator(part, histories, mask_history, metrics)
        return evaluator.summarise(evaluator.rank(self, part, self.embeddings))

    def ranking(
        self, part: str, metrics: Sequence[Metric], cutoffs: Sequence[int], mask_history: str | None = None
    ) -> Ranking:
        """Rank a part's targets again, among all items that are ranked now, and return what metrics are computed from.

        Args:
            part, mask_history: as in `evaluate`.

        Raises TransrecError for another part or mask.
        """
        evaluator, part = self._evaluator(part, None, mask_history, metrics, cutoffs)
        return evaluator.rank(self, part, self.embeddings)

    def ranks(self, part: str = "test", mask_history: str | None = None) -> np.ndarray:
        """Rank a part's targets again, among all items that are ranked now: RANK records [T], as a run saves them.

        Args:
            part, mask_history: as in `evaluate`.

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
        """Return the evaluator, and the part of its split that holds the targets."""
        _check_part_and_mask(part, mask_history)
        catalogue, added = self.dataset.split.item_rows, len(self.ids) - self.dataset.split.item_count
        rows = len(self.dataset.catalog.ids) + np.arange(added)
        split = replace(self.dataset.split, item_rows=np.concatenate([catalogue, rows]))
        if histories is not None:
            if not isinstance(histories, Sequences):
                histories = sequences_of([self.positions(history) for history in histories])
            split, part = _with_targets(split, histories), "test"
        options = self.settings.evaluation
        cutoffs = list(cutoffs or options.cutoffs)
        options = replace(options, mask_history=mask_history or options.mask_history, cutoffs=cutoffs)
        return Evaluator(split, cast(Any, None), options, *self._device, metrics), part


@dataclass(frozen=True)
class _Added:
    """Added items: rows of a catalogue, and the settings that say where the images or vectors of the items are."""

    catalog: Catalog
    rows: np.ndarray
    settings: Settings


def load_run(folder: str | Path, plugins: Sequence[str | Path] = (), dataset: str | Path | None = None) -> FinishedRun:
    """Load a finished run at its best epoch, in eval mode on the CPU: a torch module that recommends and evaluates.

    Args:
        plugins: plugin files that may be run, among them all that the run was started with (--plugin).
        dataset: the folder of the dataset, if it has moved or grown since the run.

    Raises TransrecError if the run, a plugin, or a backbone or checkpoint that the run needs is missing or has changed.
    """
    return FinishedRun(folder, plugins, dataset)


def _check_part_and_mask(part: str, mask_history: str | None) -> None:
    """Raise TransrecError for an unknown part or mask."""
    if part not in ("validation", "test"):
        raise TransrecError(f"part {part!r}: must be validation or test")
    if mask_history not in (None, *MASKS):
        raise TransrecError(f"mask_history {mask_history!r}: must be one of {', '.join(MASKS)}")


def _without(sequences: Sequences, items: np.ndarray) -> Sequences:
    """Return each sequence without the item that `items` holds for it, however often the item occurs."""
    values, owners = sequences.flat(), sequences.owners()
    others = values != items[owners]
    stops = np.cumsum(np.bincount(owners[others], minlength=len(sequences)))
    return Sequences(values[others], np.concatenate([np.zeros(1, np.int64), stops[:-1]]), stops)


def sequences_of(histories: Sequence[np.ndarray]) -> Sequences:
    """Return histories of item numbers as `Sequences`, stored one after another."""
    stops = np.cumsum([len(history) for history in histories], dtype=np.int64)
    values = np.concatenate([np.empty(0, np.int32), *histories]).astype(np.int32)
    return Sequences(values, np.concatenate([np.zeros(1, np.int64), stops[:-1]])[: len(stops)], stops)


def _with_dataset(settings: Settings, dataset: Path) -> Settings:
    """Return the same settings for a dataset in another folder."""
    data = settings.data
    named = {"users_file": data.users_file, "items_file": data.items_file}
    return with_values(
        settings, dataset=str(dataset), **{flag: Path(name).name for flag, name in named.items() if name}
    )


def with_values(settings: Settings, **values: str) -> Settings:
    """Return the same settings with new values for flags; values for flags that they do not have are ignored."""

    def change(options: Options) -> Options:
        changes = {name: value for name, value in values.items() if name in options.as_dict()}
        return replace(options, **changes) if changes else options

    return settings.changed(change)


def _with_targets(split: Split, histories: Sequences) -> Split:
    """Return the same split with the same training data, and the last item of each history as the only test targets."""
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
        # The run's own users have no targets here.
        validation_starts=np.concatenate([split.validation_starts, stops - 1]),
        test_starts=np.concatenate([old.stops, stops - 1]),
        times=None,
        evaluated_users=None,
    )
