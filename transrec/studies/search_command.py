"""The command line of a search."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from transrec import settings
from transrec.command import reporting
from transrec.errors import TransrecError, printable
from transrec.paths import make_folder, resolve
from transrec.studies.command import check_distinct, given_flags, out_folder, study_parser, workers_of
from transrec.studies.search import BEST, Search, method_grid
from transrec.studies.space import Spaces, read_spaces
from transrec.studies.study import Study
from transrec.studies.trials import Rules, load_optuna
from transrec.studies.workers import Workers


def main(description: str, arguments: list[str] | None = None) -> None:
    """Run the command line of a search.

    Exits with status 1 if a method has no best settings or a run of the refit failed, and otherwise with the status
    that `transrec.command.reporting` gives.
    """
    parser = study_parser(description, "text")
    parser.add_argument(
        "--method",
        nargs="+",
        required=True,
        help="methods, each as METHOD, METHOD:VARIANT or METHOD@ITEM_TOWER, such as full@id",
    )
    parser.add_argument(
        "--space",
        nargs="+",
        default=[],
        metavar="FLAG=RANGE",
        help="flags to vary: FLAG=LOW..HIGH, FLAG=LOW..HIGH:log or FLAG=A,B,C; METHOD.FLAG=... for one method only; or "
        "a JSON file of these",
    )
    parser.add_argument("--trials", type=int, help="trials of each method (default: 20, or as many as --hours allows)")
    parser.add_argument("--hours", type=float, help="hours of training and validation for the trials of each method")
    parser.add_argument(
        "--together",
        type=int,
        default=4,
        help="number of trials of a method that are drawn, and at most run, at the same time",
    )
    parser.add_argument(
        "--prune_after",
        type=int,
        default=3,
        help="from this epoch on, stop trials that are worse than the median of earlier trials; 0: never stop trials",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the search, and of every trial's training")
    parser.add_argument(
        "--refit_seeds", type=int, nargs="+", default=[], help="seeds with which to train the best settings"
    )
    with reporting():
        words = sys.argv[1:] if arguments is None else arguments
        settings.check_flags(parser, words)
        options, rest = parser.parse_known_args(words)
        sys.exit(_run(options, rest, _spaces(parser, options.space)))


def _spaces(parser, words: list[str]) -> Spaces:
    """Return the spaces given with --space. Raises TransrecError, naming similar flags, if a flag does not exist."""
    spaces = read_spaces(words)
    for (_, flag), text in spaces.items():
        try:
            settings.check_flags(parser, [f"--{flag}"])
        except TransrecError as error:
            raise TransrecError(f"--space {flag}={text}: {error}") from error
    return spaces


def _rules(options: argparse.Namespace) -> Rules:
    """Return the rules of the search. Raises TransrecError if the budget leaves no room for a trial."""
    for name, least in (("trials", 1), ("together", 1), ("prune_after", 0), ("seed", 0)):
        if (value := getattr(options, name)) is not None and value < least:
            raise TransrecError(f"--{name} {value}: must be at least {least}")
    if options.hours is not None and not 0 < options.hours < float("inf"):
        raise TransrecError(f"--hours {options.hours}: must be above 0")
    trials = options.trials or (20 if options.hours is None else None)
    return Rules(trials, options.hours, options.together, options.prune_after or None, options.seed)


def _run(options: argparse.Namespace, rest: list[str], spaces: Spaces) -> int:
    out, workers_for, rules = out_folder(options), workers_of(options), _rules(options)
    check_distinct("--refit_seeds", options.refit_seeds)
    if negative := [seed for seed in options.refit_seeds if seed < 0]:
        raise TransrecError(f"--refit_seeds {negative[0]}: must be at least 0")
    load_optuna()
    grid = method_grid(options.method, options.modality)
    source = resolve(options.source) if options.source else None
    given = given_flags(rest, grid)
    study = Study(source, resolve(options.target), out, grid, [rules.seed], given, options.modality)
    search = Search(study, spaces, rules)
    print(f"search      {len(search.methods)} methods, {rules.budget} each, {options.workers} runs at a time")
    for method in search.methods:
        varied = ", ".join(f"{dimension.flag} {dimension.text}" for dimension in method.space)
        print(printable(f"space       {method.name}: {varied}; chosen by validation {method.select_by}"))
    print(printable(f"results     {out}"), flush=True)
    if options.dry_run:
        return 0
    make_folder(out / "logs", "--out")
    search.open()
    _work(workers_for(out / "logs"), search)
    search.draw()
    print(f"\n{(out / 'search.md').read_text(encoding='utf-8')}")
    print(printable(f"Best settings: {out / BEST}; plots: {out}/history.png, importance.png"), flush=True)
    without = [method.name for method in search.methods if method.trials.best is None]
    any_best = len(without) < len(search.methods)
    failed = _refit(options.refit_seeds, search, workers_for) if options.refit_seeds and any_best else 0
    if without:
        print(f"error: no trial of {', '.join(without)} finished, see above", file=sys.stderr)
    return 1 if without or failed else 0


def _work(workers: Workers, work) -> None:
    work.write_tables()
    workers.run(work)
    work.write_tables()


def _refit(seeds: list[int], search: Search, workers_for: Callable[[Path], Workers]) -> int:
    """Train again with the best settings and rank the test targets; return the number of failed runs."""
    study = search.refit(seeds)
    make_folder(study.out / "logs", "--out")
    workers = workers_for(study.out / "logs")
    _work(workers, study)
    print(f"\n{search.write_refitted(study)}")
    print(printable(f"Tables: {search.out}/search.md, search.csv, {study.out}/table.md, table.csv, table.tex"))
    if workers.failed:
        print(f"error: {len(workers.failed)} of {len(study.jobs)} runs failed, see above", file=sys.stderr)
    return len(workers.failed)
