"""A study: a grid of runs from one command, and its table.

A grid is a list of axes; a point of it is one row of the table. Each point is a target run for each seed, which starts
from the source run that its objective, encoder and so on call for; points that call for the same one share it. A run's
folder is named after all that decides its numbers, so a study that is started again skips what is done, resumes what
was interrupted, and repeats nothing but what has changed. Several processes may work on one study: each run is done
by one of them, and the others wait for it.
"""

import argparse
import ast
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from transrec import assembly, methods, settings
from transrec.arguments import Parser
from transrec.command import reporting, say
from transrec.cpus import usable_cpus
from transrec.data.dataset import Dataset, load_dataset
from transrec.errors import Interrupted, TransrecError, about_file, printable
from transrec.locks import Lock
from transrec.paths import REPOSITORY, default_runs_folder, make_folder, resolve, write_text
from transrec.processes import STOP_SIGNALS
from transrec.progress import Bar
from transrec.reports.tables import (
    COLUMNS,
    below_popularity,
    comma_separated,
    latex,
    markdown,
    read_result,
    result_numbers,
    result_row,
)


@dataclass(frozen=True)
class Modality:
    """The scripts of one kind of item content, and the backbone they read it with by default."""

    encoder: str
    source: str | None
    folder: str
    targets: dict[str, str]

    def target(self, method: str) -> str:
        """The script of a method; one without a script of its own runs as --method of another."""
        return f"{self.folder}/{self.targets.get(method, self.targets['full'])}"


MODALITIES = {
    "text": Modality(
        encoder="bert-base-uncased",
        source="Pretraining/Text/script/sm_base_sasrec.py",
        folder="Downstream/Text/script",
        targets={
            "full": "finetune.py",
            "frozen": "frozen.py",
            "houlsby": "adapter_houlsby.py",
            "parallel": "adapter_houlsby_parallel.py",
            "pfeiffer": "adapter_pfeiffer.py",
            "pfeiffer_attention": "adapter_pfeiffer_attention.py",
            "lora": "adapter_lora.py",
            "compacter": "adapter_compacter.py",
            "kadapter": "adapter_kadapter.py",
            "prompt": "adapter_sp.py",
            "bitfit": "bitfit.py",
            "layernorm": "layernorm.py",
        },
    ),
    "image": Modality(
        encoder="google/vit-base-patch16-224",
        source="Pretraining/CV/script/sm_vit_sasrec.py",
        folder="Downstream/CV/script",
        targets={
            "full": "sm_vit.py",
            "frozen": "sm_vit_frozen.py",
            "houlsby": "sm_vit_adapter.py",
            "parallel": "sm_vit_adapter_parallel.py",
            "pfeiffer_attention": "sm_vit_adapter_pfeiffer.py",
            "lora": "sm_vit_lora.py",
            "compacter": "sm_vit_compacter.py",
            "kadapter": "sm_vit_adapter_kadapter.py",
            "prompt": "sm_vit_sp.py",
            "bitfit": "sm_vit_bitfit.py",
            "layernorm": "sm_vit_layernorm.py",
        },
    ),
    "multimodal": Modality(
        encoder="",
        source=None,
        folder="Downstream/Multimodal/script",
        targets={
            "full": "run_fft.py",
            "frozen": "run_frozen.py",
            "houlsby": "run_adapter.py",
            "lora": "run_lora.py",
            "bitfit": "run_bitfit.py",
            "iisan": "run_IISAN_cached.py",
        },
    ),
}
# The study decides these itself.
RESERVED = {"dataset", "checkpoint", "output", "resume", "method", "seed"}
# Of an axis that does not change a row.
NO_VALUE = "-"
BELOW = "(below)"
POLL_SECONDS = 0.2
LINES_OF_A_FAILURE = 6
THE_RUNS_SAVED = "the runs have saved, the same command continues"


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid.

    Attributes:
        name: the table's column, and the command-line flag that gives other values.
        values: of which a point takes one; none: the default backbone of the modality.
        flags: what a value sets, by default the flag of the axis' name. A value for several is divided by "/". A flag
            "source.NAME" or "target.NAME" is for the runs of that stage alone, "MODALITY_encoder" is the backbone's. A
            value of several words is divided by ",".
        meaning: what a value stands for, given the values of all axes at a point; None: itself.
    """

    name: str
    values: tuple[str, ...]
    flags: tuple[str, ...] = ()
    meaning: Callable[[str, Mapping[str, str]], str] | None = None

    def settings(self, value: str) -> dict[str, str]:
        """The flags that a value sets. Raises TransrecError when it has not as many parts as there are flags."""
        flags = self.flags or (self.name,)
        parts = value.split("/") if len(flags) > 1 else [value]
        if len(parts) != len(flags):
            raise TransrecError(f"--{self.name} {value}: give {'/'.join(flag.upper() for flag in flags)}")
        return dict(zip(flags, parts, strict=True))


@dataclass(frozen=True)
class Grid:
    """All combinations of the axes' values.

    The axes of `singly` are varied one at a time, the others of them at their first value.
    """

    axes: tuple[Axis, ...]
    singly: tuple[str, ...] = ()

    def points(self) -> list[dict[str, str]]:
        """Each point as a value for each axis."""
        first = {axis.name: axis.values[0] for axis in self.axes}
        every = itertools.product(*(dict.fromkeys(axis.values) for axis in self.axes))
        points = [dict(zip(first, values, strict=True)) for values in every]
        return [self._meant(point) for point in points if sum(point[name] != first[name] for name in self.singly) <= 1]

    def _meant(self, point: dict[str, str]) -> dict[str, str]:
        meanings = {axis.name: axis.meaning(point[axis.name], point) for axis in self.axes if axis.meaning}
        return point | meanings


@dataclass(frozen=True)
class Job:
    """One run of a study.

    Attributes:
        name: what the study calls it.
        script: path in the repository.
        flags: what the script is given, less the folders.
        folder: of the run.
        start: the run it starts from.
    """

    name: str
    script: str
    flags: dict[str, list[str]]
    folder: Path
    start: "Job | None" = None

    @property
    def result(self) -> dict[str, Any] | None:
        """What its result.json holds; None while it is not done, and when the file is damaged."""
        try:
            return read_result(self.folder)
        except TransrecError:
            return None

    @property
    def is_done(self) -> bool:
        return self.result is not None

    @property
    def command(self) -> list[str]:
        flags = self.flags | ({"checkpoint": [str(self.start.folder)]} if self.start else {})
        given = [word for name, values in flags.items() for word in (f"--{name}", *values)]
        where = "--resume" if (self.folder / "options.json").exists() else "--output"
        return [sys.executable, str(REPOSITORY / self.script), *given, where, str(self.folder)]


@dataclass
class Study:
    """The runs of a grid.

    Args:
        source, target: dataset folders; without a source nothing is pretrained.
        out: where runs and tables go.
        grid: what is varied.
        seeds: of the target runs.
        given: further flags, by (stage or method or "", flag).
        modality: what items are represented by.

    Attributes:
        rows: the points of the grid, with their runs; an axis that does not change the runs of a point has no value.
        sources: the source runs by folder, with the values that decide them.
        once: by method, the axes that do not change its runs.
    """

    source: Path | None
    target: Path
    out: Path
    grid: Grid
    seeds: list[int]
    given: dict[tuple[str, str], list[str]]
    modality: Modality = MODALITIES["text"]
    rows: list[tuple[dict[str, str], list[Job]]] = field(init=False, default_factory=list)
    sources: dict[Path, tuple[dict[str, str], Job]] = field(init=False, default_factory=dict)
    once: dict[str, set[str]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        taken: set[tuple[str, str]] = set()
        self._datasets: dict[tuple, tuple[Dataset, str]] = {}
        self._summaries: set[str] = set()
        self._checked: set[str] = set()
        rows: dict[tuple[str, ...], tuple[dict[str, str], list[Job]]] = {}
        for point in self.grid.points():
            base = self._source_job(point, taken)
            idle = [axis.name for axis in self.grid.axes if not self._matters(axis, point, base)]
            for name in [axis.name for axis in self.grid.axes if axis.name in idle and len(axis.values) > 1]:
                self.once.setdefault(_method(point)[0], set()).add(name)
            row = point | dict.fromkeys(idle, NO_VALUE)
            if tuple(row.values()) not in rows:
                jobs = [self._target_job(point, row, seed, base, taken) for seed in self.seeds]
                rows[tuple(row.values())] = row, jobs
        self.rows = list(rows.values())
        self._datasets.clear()
        if unused := [".".join(filter(None, key)) for key in self.given if key not in taken]:
            raise TransrecError(f"--{unused[0]}: no run of this study has such a flag")

    @property
    def jobs(self) -> list[Job]:
        """All runs, each source run before the target runs that start from it."""
        return [*(job for _, job in self.sources.values()), *(job for _, jobs in self.rows for job in jobs)]

    def _source_job(self, point: dict[str, str], taken: set) -> Job | None:
        flags = self._flags(point, "source", "full", taken)
        if self.source is None or self.modality.source is None or float(flags.get("user_fraction", ["1"])[0]) == 0:
            return None
        values = {axis.name: point[axis.name] for axis in self.grid.axes if self._decides(axis, point, flags)}
        job = self._job(
            ["source", *values.values()], self.modality.source, flags | {"dataset": [str(self.source)]}, "full", None
        )
        return self.sources.setdefault(job.folder, (values, job))[1]

    @staticmethod
    def _decides(axis: Axis, point: dict[str, str], flags: dict[str, list[str]]) -> bool:
        """Whether the source run depends on the axis."""
        return axis.name != "method" and any(
            flag.removeprefix("source.") in flags and not flag.startswith("target.")
            for flag in axis.settings(point[axis.name])
        )

    def _matters(self, axis: Axis, point: dict[str, str], base: Job | None) -> bool:
        """Whether the axis' value changes the target runs of a point, or the source run that they start from."""
        names = axis.settings(point[axis.name])
        known = self._known(point, "target", _method(point)[0])
        if axis.name == "method" or any(name.removeprefix("target.") in known for name in names):
            return True
        if self.source is None or self.modality.source is None:
            return False
        if base is None:
            return any(name.removeprefix("source.") == "user_fraction" for name in names)
        return self._decides(axis, point, self._flags(point, "source", "full", set()))

    def _target_job(
        self, point: dict[str, str], row: dict[str, str], seed: int, base: Job | None, taken: set[tuple[str, str]]
    ) -> Job:
        method, variant = _method(point)
        flags = self._flags(point, "target", method, taken) | {"dataset": [str(self.target)], "seed": [str(seed)]}
        if variant:
            flags["variant"] = [variant]
        if method not in self.modality.targets:
            flags["method"] = [method]
        name = [value for value in row.values() if value != NO_VALUE]
        return self._job([*name, f"seed{seed}"], self.modality.target(method), flags, method, base)

    def _known(self, point: dict[str, str], stage: str, method: str) -> set[str]:
        """The flags that a run has, its objective's and user encoder's among them."""
        given = {name: values[0] for (scope, name), values in self.given.items() if scope in ("", stage) and values}
        script = self.modality.source if stage == "source" else self.modality.target(method)
        defaults = _call_of(script)[1] if script else {}
        return settings.flags(**defaults | given | point | {"method": method})

    def _flags(self, point: dict[str, str], stage: str, method: str, taken: set) -> dict[str, list[str]]:
        """The flags of a run: those given for all, for its stage, for its method, and the point's own."""
        known = self._known(point, stage, method)
        flags: dict[str, list[str]] = {}
        scopes = ("", stage, method) if stage == "target" else ("", stage)
        for wanted in scopes:
            for (scope, name), values in self.given.items():
                if scope == wanted and name in known:
                    flags[name] = values
                    taken.add((scope, name))
        for axis in self.grid.axes:
            for flag, value in axis.settings(point[axis.name]).items():
                scope, _, name = flag.rpartition(".")
                if scope in ("", stage) and name in known and name != "method":
                    flags[name] = value.split(",")
        return flags

    def _job(self, name: list[str], script: str, flags: dict[str, list[str]], method: str, start: Job | None) -> Job:
        words = [word for flag, values in flags.items() for word in (f"--{flag}", *values)]
        parsed = settings.parse([*words, "--method", method], *_call_of(script))
        self._check(parsed, "-".join(map(_short, name)))
        values = parsed.as_dict()
        # The dataset's place may change, its content may not.
        counts = set(flags) - (settings.MAY_CHANGE - {"epochs", "patience"}) - {"dataset", "users_file", "items_file"}
        decides = [script, {flag: values[flag] for flag in counts}, self._content(parsed), start and start.folder.name]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:8]
        title = "-".join(map(_short, name))
        folder = "".join(c if c.isalnum() or c in "-_." else "-" for c in title)
        return Job(title, script, flags, self.out / "runs" / f"{folder}-{digest}", start)

    def _check(self, parsed: settings.Settings, name: str) -> None:
        """Raise TransrecError where a run's method or sizes do not fit its backbones, as the run itself would do."""
        data = parsed.data
        model = {key: value for key, value in parsed.model.as_dict().items() if key != "objective"}
        parts = [parsed.choice(kind).options.as_dict() for kind in ("method", "user_encoder")]
        built_of = [parsed.method, *parts, model, data.title_tokens, data.max_seq_len]
        if (key := json.dumps([*built_of, parsed.training.train_recommender])) in self._checked:
            return
        try:
            assembly.check_fit(parsed)
        except TransrecError as error:
            raise TransrecError(f"{error} (run {name})") from error
        self._checked.add(key)

    def _content(self, parsed: settings.Settings) -> str:
        """What the dataset's files hold; reads it whole, so that a mistake in it is told before the first run."""
        data = parsed.data
        key = (data.dataset, data.max_seq_len, data.min_seq_len, data.users_file, data.items_file)
        if key not in self._datasets:
            dataset = load_dataset(*key)
            self._datasets[key] = dataset, " ".join(dataset.hashes().values())
        dataset, content = self._datasets[key]
        summary = dataset.with_fraction(data.user_fraction, data.subset_seed).summary
        if summary not in self._summaries:
            self._summaries.add(summary)
            print(printable(f"data        {summary}"), flush=True)
        return content

    def tables(self) -> dict[str, str]:
        """The study's files by name: of what has finished so far."""
        axes = [axis.name for axis in self.grid.axes]
        rows, numbers, popularity, below = [], [], [], False
        towers: dict[str, None] = {}
        for point, jobs in self.rows:
            results = [result for job in jobs if (result := job.result)]
            cells = _cells(*results)
            rows.append([*(_short(value) for value in point.values()), str(len(results)), *cells])
            if results:
                numbers.append({"stage": "target", **_names(results[0]), **point, **result_numbers(*results)})
                below |= below_popularity(*results)
                towers |= dict.fromkeys(result["item_tower"] for result in results if "item_tower" in result)
                popularity += [result["popularity"]["HR@10"] for result in results]
        header = [*axes, "seeds", *COLUMNS]
        text = f"{markdown(header, rows)}\n"
        if towers:
            text += f"\nItem tower: {', '.join(towers)}.\n"
        if popularity:
            ends = dict.fromkeys(f"{value:.4f}" for value in (min(popularity), max(popularity)))
            text += f"\nRanking by popularity: HR@10 {' to '.join(ends)}.\n"
        if below:
            text += f"\n{BELOW}: ranks below popularity.\n"
        source_rows = []
        for values, job in self.sources.values():
            result = job.result
            cells = _cells(result) if result else _cells()
            source_rows.append([" ".join(map(_short, values.values())) or "source", *cells])
            if result:
                numbers.append({"stage": "source", **_names(result), **values, **result_numbers(result)})
        if source_rows:
            text += f"\nSource runs:\n\n{markdown(['source run', *COLUMNS], source_rows)}\n"
        return {"table.md": text, "table.csv": comma_separated(numbers), "table.tex": latex(header, rows) + "\n"}

    def write_tables(self) -> None:
        for name, text in self.tables().items():
            write_text(self.out / name, text)


def _cells(*results: dict[str, Any]) -> list[str]:
    """COLUMNS of a row over its results so far; says where they rank below popularity."""
    if not results:
        return ["-"] * len(COLUMNS)
    hit_rate, *others = result_row(*results)
    return [f"{hit_rate} {BELOW}" if below_popularity(*results) else hit_rate, *others]


def _names(result: dict[str, Any]) -> dict[str, str]:
    """Tower and method of a result."""
    return {name: result[name] for name in ("item_tower", "method") if name in result}


def _method(point: dict[str, str]) -> tuple[str, str]:
    """Method and variant of a point of the grid."""
    method, _, variant = point.get("method", "full").partition(":")
    return method, variant


@cache
def _call_of(script: str) -> tuple[str, dict[str, Any]]:
    """The method and the defaults that a script gives in its one call of `adapt` or `pretrain`."""
    tree = ast.parse((REPOSITORY / script).read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    call = next(call for call in calls if call.func.id in ("adapt", "pretrain"))
    method = ast.literal_eval(call.args[0]) if call.args else "full"
    return method, {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}


def _short(value: str) -> str:
    """A value as a cell or in a name: of a folder only the last part."""
    return printable(Path(value).name if resolve(value).is_dir() else value)


def _tell(text: str) -> None:
    """Print a line between the bars."""
    tqdm.write(printable(text))


class Workers:
    """Runs jobs, `count` at a time, each with its share of the machine's GPUs or CPU threads."""

    def __init__(self, count: int, logs: Path):
        self.count, self.logs = count, logs
        self.running: dict[int, tuple[subprocess.Popen, Job, float, Lock]] = {}
        self.failed: list[Job] = []
        self.elsewhere: set[Path] = set()
        self.stop_signal = 0

    def run(self, study: Study) -> None:
        """Run all that is not done; tables are rewritten after each. Raises Interrupted after SIGINT or SIGTERM."""
        waiting = [job for job in study.jobs if not job.is_done]
        old = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}
        bar = Bar(total=len(study.jobs), initial=len(study.jobs) - len(waiting), unit="run", desc="study")
        try:
            while (waiting or self.running) and not (self.stop_signal and not self.running):
                waiting, done = ([], 0) if self.stop_signal else self._start(waiting)
                if done:
                    bar.update(done)
                    study.write_tables()
                bar.set_postfix_str(", ".join(job.name for _, job, *_ in self.running.values())[:60])
                time.sleep(POLL_SECONDS)
                for slot in [slot for slot, (process, *_) in self.running.items() if process.poll() is not None]:
                    bar.update(self._finish(slot))
                    study.write_tables()
        finally:
            bar.close()
            # Where the study itself cannot go on, its runs stop too.
            for process, *_ in self.running.values():
                process.terminate()
            for process, *_ in self.running.values():
                process.wait()
            for number, handler in old.items():
                signal.signal(number, handler)
        if self.stop_signal:
            raise Interrupted(self.stop_signal, THE_RUNS_SAVED)

    def _start(self, waiting: list[Job]) -> tuple[list[Job], int]:
        """Start what can be started; returns what still waits, and how many runs another process has done."""
        later, done = [], 0
        for job in waiting:
            free = [slot for slot in range(self.count) if slot not in self.running]
            if job.start in self.failed:
                self.failed.append(job)
                _tell(f"left out    {job.name}: needs {job.start.name}, which failed")
            elif not free or not (job.start is None or job.start.is_done):
                later.append(job)
            elif self._launch(free[0], job):
                # Only what has been seen to run elsewhere can be done: it was not when this process began.
                done += job.is_done
            else:
                later.append(job)
        return later, done

    def _launch(self, slot: int, job: Job) -> bool:
        """Start a job, unless it is done by now; False while another process runs it."""
        lock = self._take(job)
        if lock is None:
            if job.folder not in self.elsewhere:
                self.elsewhere.add(job.folder)
                _tell(f"waiting     {job.name}: another process runs it")
            return False
        if job.is_done:
            lock.close()
            _tell(f"done        {job.name}, by another process")
            return True
        _tell(f"$ {shlex.join(job.command)}")
        with about_file(self._log(job)), open(self._log(job), "ab") as log:
            # A session of its own: Ctrl-C reaches the study alone, which passes it on once.
            process = subprocess.Popen(
                job.command, stdout=log, stderr=log, env=self._environment(slot), start_new_session=True
            )
        self.running[slot] = (process, job, time.monotonic(), lock)
        return True

    def _take(self, job: Job) -> Lock | None:
        """A job's lock, which its study holds while it runs; None while another process runs the job."""
        try:
            lock = Lock(self._log(job).with_suffix(".lock"))
        except BlockingIOError:
            return None
        try:
            # A run that was started by hand, or whose study was killed, holds its folder itself.
            if job.folder.is_dir():
                Lock(job.folder / ".lock").close()
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def _environment(self, slot: int) -> dict[str, str]:
        environment = dict(os.environ)
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        if gpus:
            share = max(1, len(gpus) // self.count)
            first = slot * share % len(gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + share])
        else:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // self.count)))
        return environment

    def _finish(self, slot: int) -> int:
        process, job, started, lock = self.running.pop(slot)
        lock.close()
        if process.returncode == 0 and (result := job.result):
            seconds = time.monotonic() - started
            _tell(f"done        {job.name}: HR@10 {_cells(result)[0]}, {seconds:.0f} s")
            return 1
        if not self.stop_signal:
            self.failed.append(job)
            last = self._log(job).read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_OF_A_FAILURE:]
            _tell(f"failed      {job.name} (status {process.returncode}), {self._log(job)}:")
            for line in last:
                _tell(f"  {line}")
        return 0

    def _log(self, job: Job) -> Path:
        return self.logs / f"{job.folder.name}.txt"

    def _stop(self, number: int, frame: Any) -> None:
        if not self.stop_signal:
            say(f"{signal.Signals(number).name}: the runs save and stop ...")
        self.stop_signal = number
        for process, *_ in self.running.values():
            process.send_signal(signal.SIGTERM)


def main(description: str, grid: Grid, arguments: list[str] | None = None, modality: str = "text") -> None:
    """Command line of a study, over `modality` by default.

    Leaves with status 1 when runs failed, else as `transrec.command.reporting` says.
    """
    parser = Parser(description + FURTHER_FLAGS)
    parser.add_argument("--source", help="dataset folder to pretrain on; without one nothing is pretrained")
    parser.add_argument("--target", required=True, help="dataset folder to adapt to")
    parser.add_argument("--modality", choices=MODALITIES, default=modality, help="of the items")
    parser.add_argument("--out", help="folder for runs and tables (default: runs/SCRIPT)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the target runs")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, which share the GPUs")
    parser.add_argument("--dry_run", action="store_true", help="say what would be run, and stop")
    for axis in grid.axes:
        default = " ".join(axis.values) or "the scripts' own"
        parser.add_argument(
            f"--{axis.name}", nargs="+", default=axis.values, help=f"values of this axis (default: {default})"
        )
    with reporting():
        words = sys.argv[1:] if arguments is None else arguments
        settings.check_flags(parser, words)
        options, rest = parser.parse_known_args(words)
        sys.exit(_run(options, grid, rest))
        sys.exit(_run(options, grid, rest))


FURTHER_FLAGS = """
Every other flag is given to the runs that know it: --epochs 20. With a stage or a method in front to those alone:
--source.epochs 20, --target.epochs 5, --lora.adapter_lr 1e-3. A method may name its variant: --method lora:published.
The same command again skips what is done and resumes what was interrupted.
"""


def _run(options: argparse.Namespace, grid: Grid, rest: list[str]) -> int:
    if options.workers < 1:
        raise TransrecError(f"--workers {options.workers}: must be at least 1")
    if len({*options.seeds}) < len(options.seeds):
        given = " ".join(map(str, options.seeds))
        raise TransrecError(f"--seeds {given}: give each seed once, or its run would count as several")
    modality = MODALITIES[options.modality]
    axes = tuple(
        replace(
            axis,
            values=tuple(getattr(options, axis.name)) or (modality.encoder,),
            flags=tuple(flag.replace("MODALITY", options.modality) for flag in axis.flags),
        )
        for axis in grid.axes
    )
    grid = replace(grid, axes=axes)
    out = resolve(options.out) if options.out else default_runs_folder() / Path(sys.argv[0]).stem
    source = resolve(options.source) if options.source else None
    study = Study(source, resolve(options.target), out, grid, options.seeds, _given(rest, grid), modality)
    jobs = study.jobs
    done = sum(job.is_done for job in jobs)
    print(f"study       {len(study.rows)} rows, {len(jobs)} runs of which {done} are done, {options.workers} at a time")
    for method, names in study.once.items():
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
    workers = Workers(options.workers, out / "logs")
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


def _given(words: list[str], grid: Grid) -> dict[tuple[str, str], list[str]]:
    """Flags for the runs, by (stage or method or "", flag). Raises TransrecError for one that the study sets itself."""
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
            raise TransrecError(f"--{flag}: before the dot stands source, target or a method, not {scope!r}")
        if name in RESERVED and (scope, name) != ("source", "seed"):
            raise TransrecError(f"--{flag}: the study sets it itself; --help lists its flags")
        if axis := by_axis.get(flag) or by_axis.get(name):
            raise TransrecError(f"--{flag}: is an axis of this study; give its values with --{axis}")
        values = given.setdefault((scope, name), [])
        values.extend([value] if equals else [])
    return given
