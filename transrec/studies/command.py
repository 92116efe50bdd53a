"""The command line of a study."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from transrec import methods, settings
from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import TransrecError, printable
from transrec.paths import default_runs_folder, make_folder, resolve
from transrec.reports.published import select
from transrec.reports.tables import read_result
from transrec.studies.cluster import CLUSTERS, ClusterWorkers, Resources
from transrec.studies.grid import MODALITIES, Axis, Grid
from transrec.studies.papers import Table
from transrec.studies.study import Job, Study
from transrec.studies.workers import Workers

# Flags that the study sets itself.
RESERVED = {"dataset", "checkpoint", "output", "resume", "method", "seed", "test"}
# Clusters limit the number of queued jobs per user, and a study keeps one open file per job.
JOBS_IN_A_QUEUE = 200
FURTHER_FLAGS = """
Every other flag goes to the runs that know it: --epochs 20. With a stage or a method in front, to those alone:
--source.epochs 20, --target.epochs 5, --lora.adapter_lr 1e-3. A method may name its variant: --method lora:published.
What no flag sets follows the papers, for the method and the modality (docs/defaults.md). The same command again skips
what is done and resumes what was interrupted.
"""


def main(
    description: str,
    grid: Grid,
    arguments: list[str] | None = None,
    modality: str = "text",
    table: Table | None = None,
) -> None:
    """Run the command line of a study, with `modality` as the default of --modality.

    Args:
        table: the table of a paper that the study reproduces, at the paper's settings and next to its figures.

    Exits with status 1 if runs failed, and otherwise with the status that `transrec.command.reporting` gives.
    """
    parser = study_parser(description, modality, table)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the target runs; one run per seed")
    for axis in grid.axes:
        parser.add_argument(
            f"--{axis.name}", nargs="+", help=f"values of this axis (default: {_default(axis, _modalities(table))})"
        )
    parser.add_argument(
        "--published", metavar="FILE", help="CSV of published figures to show next to the rows (docs/reproducing.md)"
    )
    if table:
        parser.add_argument(
            "--quick", action="store_true", help="take one step of each run, with tiny backbones and generated data"
        )
    with reporting():
        words = sys.argv[1:] if arguments is None else arguments
        settings.check_flags(parser, words)
        options, rest = parser.parse_known_args(words)
        sys.exit(_run(options, grid, rest, table))


def study_parser(description: str, modality: str, table: Table | None = None) -> Parser:
    """Return a parser with the flags that studies and searches share."""
    parser = Parser(description + FURTHER_FLAGS)
    papers = " (default: the paper's, in Dataset)" if table else ""
    parser.add_argument(
        "--source", help=f"dataset folder to pretrain on{papers or '; without one nothing is pretrained'}"
    )
    parser.add_argument("--target", required=not table, help=f"dataset folder to adapt to{papers}")
    parser.add_argument("--modality", choices=_modalities(table), default=modality, help="what represents an item")
    parser.add_argument("--out", help="folder for runs and tables (default: runs/SCRIPT)")
    parser.add_argument(
        "--workers",
        type=int,
        help=f"runs at a time, which share the GPUs (default: 1; {JOBS_IN_A_QUEUE} with --cluster)",
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands that would be run, and stop")
    _add_cluster_flags(parser)
    return parser


def _add_cluster_flags(parser: Parser) -> None:
    parser.add_argument(
        "--cluster",
        choices=[*CLUSTERS],
        help="slurm: each run is a SLURM job, which saves and is queued again when it is preempted or reaches its time "
        "limit; local: try this out with jobs on this machine",
    )
    asked = {field.name: field.default for field in fields(Resources)}
    flags = {
        "gpus": (int, "GPUs of each job; 0 for a cluster without any (default: {})"),
        "cpus": (int, "CPU cores of each job (default: what the cluster gives)"),
        "memory": (float, "memory of each job in GiB (default: what the cluster gives)"),
        "hours": (float, "time limit of each job; a longer run goes on in its next turn (default: {:g})"),
        "partition": (str, "partition of the jobs; several, divided by commas, for whichever is free first"),
    }
    for name, (kind, text) in flags.items():
        parser.add_argument(f"--job_{name}", type=kind, help=f"with --cluster: {text.format(asked[name])}")


def workers_of(options: argparse.Namespace) -> Callable[[Path], Workers]:
    """Return a function that makes the workers, given the folder of their logs.

    Raises TransrecError for fewer than one worker, for --job flags without --cluster, for resources that are out of
    range, and if the cluster or its partition does not exist.
    """
    asked = {field.name: getattr(options, f"job_{field.name}") for field in fields(Resources)}
    asked = {name: value for name, value in asked.items() if value is not None}
    if options.workers is None:
        options.workers = JOBS_IN_A_QUEUE if options.cluster else 1
    if options.workers < 1:
        raise TransrecError(f"--workers {options.workers}: must be at least 1")
    if options.cluster is None:
        if asked:
            raise TransrecError(f"--job_{min(asked)}: says what a job of a cluster asks for; give --cluster too")
        return partial(Workers, options.workers)
    cluster, resources = CLUSTERS[options.cluster], Resources(**asked)
    if not options.dry_run:
        cluster.check(resources)
    print(printable(f"cluster     {cluster.name}: each run is a job of {resources.summary}"))
    return partial(ClusterWorkers, options.workers, cluster=cluster, resources=resources)


def check_distinct(flag: str, seeds: list[int]) -> None:
    """Raise TransrecError if a seed is given twice."""
    if len({*seeds}) < len(seeds):
        raise TransrecError(
            f"{flag} {' '.join(map(str, seeds))}: give each seed once, or its run would count as several"
        )


def out_folder(options: argparse.Namespace) -> Path:
    """Return the folder for runs and tables."""
    quick = "-quick" if getattr(options, "quick", False) else ""
    return resolve(options.out) if options.out else default_runs_folder() / f"{Path(sys.argv[0]).stem}{quick}"


def _modalities(table: Table | None) -> list[str]:
    """Return the possible item modalities: all of them, or for a paper's table those of the paper."""
    return [*(table.paper.domains if table else MODALITIES)]


def _default(axis: Axis, known: Sequence[str]) -> str:
    """Return the axis' default values as text, by modality if they differ between the known modalities."""
    values = {modality: " ".join(axis.for_modality(modality).values) for modality in known}
    if len({*values.values()}) == 1:
        return values[known[0]]
    return "; ".join(f"{modality}: {words}" for modality, words in values.items())


def _study(options: argparse.Namespace, grid: Grid, rest: list[str], table: Table | None) -> Study:
    """Return the study that the command line asks for; for a paper's table, first print what the table needs."""
    out = out_folder(options)
    grid = replace(
        grid, axes=tuple(axis.for_modality(options.modality, getattr(options, axis.name)) for axis in grid.axes)
    )
    given = given_flags(rest, grid)
    published = select(options.published, *((table.paper.name, table.name) if table else ()))
    if table:
        grid, defaults = table.prepare(options, out, grid)
        given = {("", flag): [value] for flag, value in defaults.items()} | given
        print(table.requirements(options, grid, published), flush=True)
        table.check(options)
    source = resolve(options.source) if options.source else None
    return Study(source, resolve(options.target), out, grid, options.seeds, given, options.modality, published)


def _run(options: argparse.Namespace, grid: Grid, rest: list[str], table: Table | None) -> int:
    workers_for = workers_of(options)
    check_distinct("--seeds", options.seeds)
    study = _study(options, grid, rest, table)
    out = study.out
    jobs = study.jobs
    done = sum(job.is_done for job in jobs)
    print(f"study       {len(study.rows)} rows, {len(jobs)} runs of which {done} are done, {options.workers} at a time")
    for method, names in study.idle_axes.items():
        print(f"once        {method}: does not depend on {', '.join(sorted(names))}; one row for all their values")
    for job in jobs:
        if (job.folder / "result.json").exists() and not job.is_done:
            print(printable(f"again       {_why_damaged(job)}"))
    print(printable(f"results     {out}"), flush=True)
    if options.dry_run:
        for job in jobs:
            print(printable(f"{'done        ' if job.is_done else ''}$ {shlex.join(job.command)}"))
        return 0
    make_folder(out / "logs", "--out")
    workers = workers_for(out / "logs")
    study.write_tables()
    workers.run(study)
    study.write_tables()
    print(f"\n{study.tables()['table.md']}")
    print(printable(f"Tables: {out}/table.md, table.csv, table.tex"))
    if workers.failed:
        print(f"error: {len(workers.failed)} of {len(jobs)} runs failed, see above", file=sys.stderr)
    return 1 if workers.failed else 0


def _why_damaged(job: Job) -> str:
    try:
        read_result(job.folder)
    except TransrecError as error:
        return str(error).partition(";")[0]
    return ""


def given_flags(words: list[str], grid: Grid) -> dict[tuple[str, str], list[str]]:
    """Return flags for the runs, by (stage or method or "", flag).

    Raises TransrecError if a word is unknown or if the study sets the flag itself.
    """
    by_axis = {flag: axis.name for axis in grid.axes for flag in axis.flags or (axis.name,)}
    given: dict[tuple[str, str], list[str]] = {}
    values: list[str] | None = None
    for word in words:
        if not word.startswith("--"):
            if values is None:
                raise TransrecError(f"unknown: {word}; --help shows how to call this")
            values.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        scope, _, name = flag.replace("-", "_").rpartition(".")
        if name.startswith("no_"):
            name, equals, value = name.removeprefix("no_"), "=", "false"
        if scope not in ("", "source", "target", *methods.names()):
            raise TransrecError(f"--{flag}: the word before the dot must be source, target or a method, not {scope!r}")
        if axis := by_axis.get(flag) or by_axis.get(name):
            raise TransrecError(f"--{flag}: is an axis of this study; give its values with --{axis}")
        if name in ("item_tower", "modalities"):
            raise TransrecError(f"--{flag}: the study sets it itself; give --modality")
        if name in RESERVED and (scope, name) != ("source", "seed"):
            raise TransrecError(f"--{flag}: the study sets it itself; --help lists its flags")
        values = given.setdefault((scope, name), [])
        values.extend([value] if equals else [])
    return given
