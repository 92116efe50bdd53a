"""Compare finished runs by the ranks that they stored: metrics, slices, and significance tests."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from transrec.baselines import BASELINES
from transrec.data.dataset import Dataset
from transrec.errors import TransrecError, warn
from transrec.paths import resolve
from transrec.reports.reranking import Reranking
from transrec.reports.significance import CORRECTIONS, p_values_against, paired_tests, spread
from transrec.reports.slices import SLICES, Targets
from transrec.runner import read_dataset
from transrec.settings import STOPPING, Settings, read_settings, result_options
from transrec.training.metrics import METRICS, Metric, Ranking, RankMetric
from transrec.training.ranks import ranks_file, read_ranks
from transrec.training.run import read_options

# Significance level: a difference with a smaller p-value counts as more than chance.
SIGNIFICANT = 0.05
ALL = "all"
# Flags in which runs of one method may differ.
PER_RUN_FLAGS = {"seed", "output", "files"}


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seed, or a baseline.

    Attributes:
        name: the name in tables.
        seeds: the runs' seeds, ascending; empty for a baseline, which draws nothing at random.
        ranks: float64 [S, T], the ranks of each run's targets; [1, T] for a baseline.
        folders: folders of the runs; for a baseline, of the runs that stored exactly these ranks of it.
    """

    name: str
    seeds: list[int]
    ranks: np.ndarray
    folders: list[Path]


def _shortest_places(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each of these distinct folders, or as many parts as tell them apart."""
    for count in range(1, max(len(folder.parts) for folder in folders) + 1):
        places = ["/".join(folder.parts[-count:]) for folder in folders]
        if len(set(places)) == len(places):
            break
    return places


def group_by_method(runs: Mapping[Path, Settings]) -> list[list[Path]]:
    """Group the folders of runs that differ only in their seed, by ascending seed."""
    groups: dict[str, list[Path]] = {}
    for folder, settings in runs.items():
        groups.setdefault(repr(sorted(distinguishing_settings(settings).items())), []).append(folder)
    return [sorted(folders, key=lambda folder: runs[folder].training.seed) for folders in groups.values()]


def distinguishing_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that distinguish a method from others, by flag."""
    return _distinguishing(settings.as_dict())


def _distinguishing(options: dict[str, Any]) -> dict[str, Any]:
    kept = result_options(options) | {name: options[name] for name in STOPPING if name in options}
    kept = {name: value for name, value in kept.items() if name not in PER_RUN_FLAGS}
    return kept | ({"checkpoint": _source(kept["checkpoint"])} if kept.get("checkpoint") else {})


def _source(checkpoint: str) -> str:
    """Return a name of a --checkpoint that is the same for source runs that differ only in their seed.

    The path itself, if the source run's settings cannot be read.
    """
    path = resolve(checkpoint)
    try:
        source = read_options(path.parent.parent if path.is_file() else path)
        content = json.dumps(_distinguishing(source), sort_keys=True)
    except TransrecError:
        return checkpoint
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"{source.get('method')} on {Path(str(source.get('dataset'))).name} {digest}"


@dataclass(frozen=True)
class MetricAtCutoff:
    """A metric at a cut-off."""

    metric: Metric
    cutoff: int

    @property
    def name(self) -> str:
        return self.metric.named(self.cutoff)

    def per_target(self, ranks: np.ndarray) -> np.ndarray | None:
        """Return the metric's value for each of the ranks [S, T]; None if the metric is not a mean over targets."""
        return self.metric.per_target(ranks, self.cutoff) if isinstance(self.metric, RankMetric) else None


def metrics_at(metrics: Sequence[str], cutoffs: Sequence[int], flag: str = "metrics") -> list[MetricAtCutoff]:
    """Return the metrics named by a flag, each at all cut-offs. Raises TransrecError for unknown metrics."""
    pairs = []
    for name in dict.fromkeys(metrics):
        entry = METRICS.get(name, flag)
        metric = entry(**entry.Options.defaults())
        pairs += [MetricAtCutoff(metric, k) for k in (cutoffs if metric.has_cutoff else [max(cutoffs)])]
    return pairs


class Comparison:
    """Finished runs over the same targets.

    Args:
        folders: folders of runs; runs that differ only in their seed are one method.
        part: "validation" or "test".
        plugins: files that may be executed, including all plugins that the runs were started with.
        baselines: names of baselines to compare, too, by the ranks that the runs stored.
        reranking: ranking options. Runs with other options are ranked again by their models, and then no baseline can
            be compared.

    Attributes:
        methods: the methods of the runs.
        baselines: the baselines; one appears several times if the runs stored different ranks of it.

    Warns of runs that rank different items. Raises TransrecError for a folder without ranks, for runs over different
    targets, and for baselines that no run stored.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        part: str = "test",
        plugins: Sequence[str | Path] = (),
        baselines: Sequence[str] = (),
        reranking: Reranking | None = None,
    ):
        self.part, self._reranking = part, reranking or Reranking(plugins=plugins)
        self._settings: dict[Path, Settings] = {}
        kept: dict[Path, np.ndarray] = {}
        for folder in dict.fromkeys(map(resolve, folders)):
            self._settings[folder] = read_settings(folder, plugins)
            kept[folder] = self._reranking.ranks(folder, self._settings[folder], part)
        if not kept:
            raise TransrecError("no run is given: name at least one run folder")
        self._first, self._targets = next(iter(kept.items()))
        for folder, ranks in kept.items():
            self._check_targets(folder, ranks)
        self._warn_of_candidates()
        self.methods = self._make_methods(kept)
        self.baselines = [method for name in dict.fromkeys(baselines) for method in self._baseline(name)]

    def _warn_of_candidates(self) -> None:
        """Warn if the runs rank their targets among different items."""
        applied = [self._reranking.apply(settings).as_dict() for settings in self._settings.values()]
        for flag in ("mask_history", "catalogue"):
            if len(values := sorted({options[flag] for options in applied})) > 1:
                warn(
                    f"the runs rank different items, with --{flag} {' and '.join(values)}, so their metrics are not "
                    f"comparable; evaluate.py --{flag} ranks all of them alike"
                )

    def _check_targets(self, folder: Path, ranks: np.ndarray) -> None:
        if not same_targets(ranks, self._targets["user"], self._targets["item"]):
            raise TransrecError(
                f"{folder}: was not evaluated on the same {self.part} targets as {self._first}; compare runs on the "
                f"same data, --split, --max_seq_len, --min_seq_len and --eval_users"
            )

    def _baseline(self, name: str) -> list[Method]:
        """Return an entry for each distinct set of a baseline's ranks; several backbones may give several sets."""
        label = BASELINES.get(name).label
        if self.part != "test":
            raise TransrecError(f"--baselines {name}: ranks only the test targets; use --part test")
        if any(self._reranking.apply(settings).as_dict() != settings.as_dict() for settings in self._settings.values()):
            raise TransrecError(
                f"--baselines {name}: is kept as the runs ranked; leave --mask_history and --catalogue out"
            )
        holders = [folder for folder in self._settings if ranks_file(folder, self.part, name).exists()]
        if not holders:
            raise TransrecError(
                f"--baselines {name}: no run keeps ranks of it: their --baselines left it out, they could not make it, "
                f"or they are of an earlier release"
            )
        distinct: list[tuple[np.ndarray, list[Path]]] = []
        for folder in holders:
            kept = read_ranks(folder, self.part, name)
            self._check_targets(folder, kept)
            same = next((folders for ranks, folders in distinct if np.array_equal(ranks, kept["rank"])), None)
            if same is None:
                distinct.append((kept["rank"], same := []))
            same.append(folder)
        places = _shortest_places([folders[0] for _, folders in distinct])
        return [
            Method(label if len(distinct) == 1 else f"{label} ({place})", [], ranks[None].astype(np.float64), folders)
            for place, (ranks, folders) in zip(places, distinct, strict=True)
        ]

    @property
    def compared(self) -> list[Method]:
        """The methods, followed by the baselines."""
        return [*self.methods, *self.baselines]

    def _make_methods(self, ranks_by_folder: dict[Path, np.ndarray]) -> list[Method]:
        groups = group_by_method(self._settings)
        names = [self._settings[folders[0]].name for folders in groups]
        places = _shortest_places([folders[0] for folders in groups])
        methods = []
        for name, place, folders in zip(names, places, groups, strict=True):
            seeds = [self._settings[folder].training.seed for folder in folders]
            if len(set(seeds)) < len(seeds):
                raise TransrecError(f"{folders[0]} and {folders[1]}: are one run of one seed twice; leave one out")
            ranks = np.stack([ranks_by_folder[folder]["rank"] for folder in folders]).astype(np.float64)
            # Methods with different settings may share a name.
            distinct_name = name if names.count(name) == 1 else f"{name} ({place})"
            methods.append(Method(distinct_name, seeds, ranks, folders))
        return methods

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that the runs were evaluated on. Raises TransrecError if it is missing or has changed."""
        dataset = read_dataset(self._reranking.apply(self._settings[self._first]), with_times=True)
        targets, split = Targets(dataset, self.part), dataset.split
        if not same_targets(self._targets, split.user_rows[targets.users], split.item_rows[targets.items - 1]):
            raise TransrecError(f"{dataset.folder}: has changed since {self._first} was evaluated on it; restore it")
        return dataset

    def slices(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return a mask of the targets in each slice, bool [T], by the slice's name; first the slice of all targets."""
        groups = {ALL: np.ones(self.methods[0].ranks.shape[1], dtype=bool)}
        for name in names:
            entry = SLICES.get(name)
            labels, index = entry().groups(Targets(self.dataset, self.part))
            groups |= {f"{entry.label}: {label}": index == number for number, label in enumerate(labels)}
        return {name: mask for name, mask in groups.items() if mask.any()}

    def rows(self, metrics: Sequence[MetricAtCutoff], slices: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return a row for each slice and each of `compared`: its targets and seeds, each metric's mean and deviation.

        Metrics of recommended lists need the models, so the runs are ranked again for them. Raises TransrecError if
        such a metric is asked for baselines, because runs store only their ranks.
        """
        if self.baselines and (of_lists := [each.name for each in metrics if each.metric.needs_lists]):
            raise TransrecError(
                f"--metrics: {of_lists[0]} is computed from lists of recommended items, but runs keep only the "
                f"ranks of baselines; leave --baselines out"
            )
        rows = []
        rankings = [self._rankings(method, metrics) for method in self.compared]
        for name, mask in self.slices(slices).items():
            for method, of_method in zip(self.compared, rankings, strict=True):
                row = {"slice": name, "targets": int(mask.sum()), "method": method.name, "seeds": len(method.seeds)}
                for each in metrics:
                    values = [each.metric(ranking.only(mask), each.cutoff) for ranking in of_method]
                    row[each.name] = float(np.mean(values))
                    row[f"{each.name} deviation"] = float(np.std(values, ddof=1)) if len(values) > 1 else ""
                rows.append(row)
        return rows

    def _rankings(self, method: Method, metrics: Sequence[MetricAtCutoff]) -> list[Ranking]:
        """Return the ranking of each of a method's runs, with all that the metrics need."""
        if not any(each.metric.needs_lists for each in metrics):
            counted = any(not isinstance(each.metric, RankMetric) for each in metrics)
            item_count = self.dataset.split.item_count if counted else 0
            return [Ranking(ranks, item_count=item_count) for ranks in method.ranks]
        entries, cutoffs = list({each.metric for each in metrics}), sorted({each.cutoff for each in metrics})
        return [self._reranking.ranking(folder, self.part, entries, cutoffs) for folder in method.folders]

    def tests_against_best(self, metric: MetricAtCutoff, test: str, correction: str) -> list[dict[str, Any]]:
        """Return a row for each of `compared`, the best first: its interval, and its p-value against the best.

        Args:
            test: "McNemar", "Wilcoxon" or "paired t" (transrec.reports.significance).
            correction: "holm" or "bh", over the rows.

        Raises TransrecError for a metric that is not a mean over targets, and for McNemar's test of values other than
        0 and 1.
        """
        values = {method.name: _values_per_target(metric, method) for method in self.compared}
        if test == "McNemar" and not all(np.isin(array, (0, 1)).all() for array in values.values()):
            raise TransrecError(f"--test McNemar: compares hits, and {metric.name} is none; use Wilcoxon or paired_t")
        order = sorted(values, key=lambda name: -values[name].mean())
        p_values = p_values_against(order[0], values, test, correction) if len(order) > 1 else {}
        rows = []
        for method in sorted(self.compared, key=lambda method: order.index(method.name)):
            spreads = spread(values[method.name])
            rows.append(
                {
                    "method": method.name,
                    "seeds": len(method.seeds),
                    metric.name: spreads.users.mean,
                    "low": spreads.users.low,
                    "high": spreads.users.high,
                    "deviation over seeds": "" if spreads.seeds is None else spreads.seeds,
                    "p": p_values.get(method.name, ""),
                }
            )
        return rows

    def pairwise_tests(
        self, metric: MetricAtCutoff, test: str, correction: str
    ) -> dict[tuple[int, int], tuple[float, float]]:
        """Return the mean difference and its p-value for each pair, keyed by the pair's places in `compared`.

        Args:
            metric: a metric that is a mean over targets.
            test, correction: as for `tests_against_best`. The correction is over all pairs of methods. Baselines are
                not paired with each other, and pairs of a method and a baseline are corrected separately, so that
                another baseline does not raise the p-values between methods.

        Raises TransrecError for another metric.
        """
        methods, everything = range(len(self.methods)), range(len(self.compared))
        among = self._test_pairs(metric, list(combinations(methods, 2)), test, correction)
        with_baselines = list(product(methods, everything[len(methods) :]))
        return among | self._test_pairs(metric, with_baselines, test, correction)

    def _test_pairs(
        self, metric: MetricAtCutoff, pairs: list[tuple[int, int]], test: str, correction: str
    ) -> dict[tuple[int, int], tuple[float, float]]:
        values = [_values_per_target(metric, method) for method in self.compared]
        p_values = CORRECTIONS[correction]([paired_tests(values[a], values[b])[test] for a, b in pairs])
        means = [array.mean() for array in values]
        differences = [float(means[a] - means[b]) for a, b in pairs]
        return dict(zip(pairs, zip(differences, p_values, strict=True), strict=True))


def _values_per_target(metric: MetricAtCutoff, method: Method) -> np.ndarray:
    """Return a metric's value for each target, [S, T]. Raises TransrecError if the metric is no mean over targets."""
    values = metric.per_target(method.ranks)
    if values is None:
        raise TransrecError(f"--test_metric {metric.name}: is not a mean over targets, which is what the tests compare")
    return values


def same_targets(ranks: np.ndarray, users: np.ndarray, items: np.ndarray) -> bool:
    """Return whether stored ranks belong to these rows of users and items, in the same order."""
    return np.array_equal(ranks["user"], users) and np.array_equal(ranks["item"], items)
