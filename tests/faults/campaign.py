"""Injects faults into runs, at moments drawn from a seed; prints and writes one table of the outcomes.

    python tests/faults/campaign.py --seed 0 --minutes 20
    python tests/faults/campaign.py --only "full disk" "kill: image" --out runs/faults

Runs over titles, over images, over cached hidden states and in two processes are killed, or asked to end, at random
moments and then continued: the numbers must be those of an undisturbed run, bit for bit. Disks fill up at chosen
writes, a rank stops, a launcher dies, three runs share an empty cache, files are invalid. Every error that a user can
cause must end in one line and status 2; the table counts the cases in which it did.

Exits with status 1 if a case failed. The output of the processes stays below --out, in the folder of each case.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from harness import (
    REPOSITORY,
    SECONDS_TO_END,
    Ended,
    Failed,
    Launcher,
    Skipped,
    end_all,
    fill,
    in_own_mounts,
    make_room,
    pages,
    script,
    small_disk,
    start,
    until_gone,
)

# The helpers that compare runs, and the hostile files, are in the parent folder.
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

EPOCHS = 5
SHORT_EPOCHS = 2
TIMEOUT = 5
ATTEMPTS = 3
HOUSLBY = "Downstream/Text/script/adapter_houlsby.py"
CACHED = "Downstream/Multimodal/script/run_IISAN_cached.py"
STUDY = "scripts/study_adapters.py"


@dataclass(frozen=True)
class Kind:
    """A kind of run: its script, the backbones that it reads, and its additional flags."""

    script: str
    encoders: tuple[str, ...] = ("text",)
    flags: tuple[str, ...] = ()
    processes: int = 1


KINDS = {
    "text": Kind(HOUSLBY),
    "image": Kind("Downstream/CV/script/sm_vit_adapter.py", ("image",), ("--image_workers", "2")),
    "cached": Kind(CACHED, ("text", "image")),
    "two processes": Kind(HOUSLBY, flags=("--nproc", "2"), processes=2),
}


@dataclass
class Outcome:
    """The outcome of a case.

    Attributes:
        failure: what was wrong; "" if nothing was.
        skipped: why the case was not tried; "" if it was.
        errors, one_line: number of runs that had to end in an error message, and of those that ended in one line,
            status 2.
        note: additional information about a case that passed.
    """

    kind: str
    name: str
    failure: str = ""
    skipped: str = ""
    errors: int = 0
    one_line: int = 0
    note: str = ""
    seconds: float = 0.0


@dataclass
class Bench:
    """The place where cases are tried: data, backbones and undisturbed runs, each made once."""

    out: Path
    epochs: int = EPOCHS
    outcome: Outcome = field(init=False)

    @cached_property
    def good(self) -> dict[str, Path]:
        """A dataset, a text backbone and an image backbone."""
        from transformers.utils.logging import disable_progress_bar

        from transrec.data.demo import Domain, make_domain_with_store, make_image_backbone, make_text_backbone

        disable_progress_bar()
        folders = {name: self.out / "good" / name for name in ("dataset", "text", "image")}
        make_domain_with_store(folders["dataset"], Domain("faults", users=240, items=300, longest=9, seed=3))
        make_text_backbone(folders["text"], hidden_size=32, layers=2)
        make_image_backbone(folders["image"], hidden_size=32, layers=2)
        return folders

    def command(self, kind: str, folder: Path, *more: str, caches: Path | None = None) -> list[str]:
        """Return the command of a run of that kind in `folder`; `caches` is by default a folder next to it."""
        caches = caches or folder.with_name("caches")
        flags = ["--dataset", str(self.good["dataset"]), "--embedding_dim", "16", "--max_seq_len", "6"]
        flags += ["--batch_size", "4", "--epochs", str(self.epochs), "--lr", "1e-2"]
        flags += ["--device", "cpu", "--save_steps", "7", "--keep_state"]
        if "text" in KINDS[kind].encoders:
            flags += ["--title_tokens", "10", "--cache_dir", str(caches)]
        for encoder in KINDS[kind].encoders:
            flags += [f"--{encoder}_encoder", str(self.good[encoder])]
        if kind == "cached":
            flags += ["--state_cache", str(caches)]
        return script(KINDS[kind].script, *flags, *KINDS[kind].flags, "--output", str(folder), *more)

    def unbroken(self, kind: str) -> tuple[Path, float]:
        """Return the folder of an undisturbed run, and the seconds that it took."""
        if kind not in self._unbroken:
            place = self.out / "unbroken" / kind.replace(" ", "-")
            began = time.monotonic()
            ended = start(self.command(kind, place / "run"), place).wait()
            if ended.status:
                raise Failed(f"the run to compare with: {ended}")
            self._unbroken[kind] = place / "run", time.monotonic() - began
        return self._unbroken[kind]

    @cached_property
    def _unbroken(self) -> dict[str, tuple[Path, float]]:
        return {}

    @cached_property
    def good_for_hostile_files(self):
        """The inputs that hostile files are made from."""
        import hostile

        return hostile.make_good(self.out / "good-for-hostile-files")

    @cached_property
    def launcher(self) -> Launcher:
        return Launcher(self.out)

    def must_be_one_line(self, ended: Ended) -> str:
        """Check that a run ended as an error that a user can cause must, and return its line."""
        self.outcome.errors += 1
        if not ended.is_one_line:
            raise Failed(f"expected one line `error: ...` and status 2: {ended}")
        self.outcome.one_line += 1
        return ended.errors()[0]

    def must_go_on(self, kind: str, place: Path, run: Path, caches: Path | None = None) -> None:
        """Check that the same command with --resume ends well, with the numbers of the undisturbed run."""
        ended = start(self.command(kind, run, "--resume", caches=caches), place / "resumed").wait()
        if ended.status:
            raise Failed(f"continuing: {ended}")
        self.must_equal(kind, run)
        if left := [path.name for folder in (run, caches or place / "caches") for path in folder.rglob(".*")]:
            raise Failed(f"left behind: {', '.join(left)}")

    def must_equal(self, kind: str, run: Path) -> None:
        import torch
        from test_training import best, numbers

        # The length of a checkpoint's description depends on the path of the caches.
        one, other = (numbers(folder) | {"checkpoint_bytes": 0} for folder in (self.unbroken(kind)[0], run))
        tensors, others = best(self.unbroken(kind)[0]), best(run)
        different = [name for name in one if one[name] != other.get(name)]
        different += [name for name in tensors if name not in others or not torch.equal(tensors[name], others[name])]
        if different or one.keys() != other.keys() or tensors.keys() != others.keys():
            raise Failed(f"differs from the run that nobody touched: {', '.join(different) or 'in its entries'}")

    def close(self) -> None:
        if "launcher" in vars(self):
            self.launcher.close()


@dataclass(frozen=True)
class Case:
    """One thing to try; `act(bench, place)` raises Failed or Skipped."""

    kind: str
    name: str
    act: Callable[[Bench, Path], None]

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def interrupted(kind: str, number: int, share: float) -> Case:
    """Return a case that signals all processes of a run, after the given share of the time that a run takes."""

    def act(bench: Bench, place: Path) -> None:
        _, seconds = bench.unbroken(kind)
        for attempt in range(ATTEMPTS):
            run = place / str(attempt) / "run"
            began, since = start(bench.command(kind, run), run.with_name("first")), time.monotonic()
            while time.monotonic() - since < share * seconds and began.process.poll() is None:
                time.sleep(0.002)
            if began.process.poll() is None:
                break
            # The machine was slower when the run to compare with was made.
            seconds = min(seconds, time.monotonic() - since)
        family, had_state = began.family(), (run / "checkpoints" / "last.safetensors").exists()
        began.signal(number)
        ended = began.wait()
        until_gone(family)
        bench.outcome.note = "had ended" if ended.status == 0 else _progress(ended.out)
        if ended.status and number == signal.SIGTERM:
            _must_have_stopped(ended, had_state, run)
        bench.must_go_on(kind, run.parent, run)

    sent = "kill" if number == signal.SIGKILL else "terminate"
    return Case(sent, f"{kind} at {share:.0%}", act)


def _must_have_stopped(ended: Ended, had_state: bool, run: Path) -> None:
    """Check the end by SIGTERM: one line says how to continue if a state was saved; otherwise the run just ends."""
    stop_lines = [line for line in [*ended.out.splitlines(), *ended.errors()] if "stopped by SIGTERM" in line]
    # During a step, the run announces at once that it will stop after the step.
    messages = [line for line in ended.errors() if not line.startswith("SIGTERM: stops after this step")]
    if ended.traceback or len(messages) > 1 or set(messages) - set(stop_lines):
        raise Failed(f"more than the line that says how it goes on: {ended}")
    if had_state and (
        ended.status != 128 + signal.SIGTERM or len(stop_lines) != 1 or f"--resume {run}" not in stop_lines[0]
    ):
        raise Failed(f"does not say in one line that it was saved, and how it goes on: {ended}")
    if ended.status not in (128 + signal.SIGTERM, -signal.SIGTERM):
        raise Failed(str(ended))


def _progress(out: str) -> str:
    """Return how far the run had come."""
    lines = [line for line in out.splitlines() if line.strip() and "stopped by" not in line]
    return f"behind {lines[-1][:40].split('  ')[0]!r}" if lines else "before its first line"


def _epoch_has_begun(run: Path) -> Callable[[], bool]:
    return lambda: (run / "checkpoints" / "last.safetensors").exists()


def stopped_rank(rank: int) -> Case:
    """Return a case in which one of two ranks is suspended: the other must name that rank, and end."""

    def act(bench: Bench, place: Path) -> None:
        run = place / "run"
        more = ("--timeout", str(TIMEOUT), "--epochs", "1000")
        began = start(bench.command("two processes", run, *more), place / "first")
        began.until(_epoch_has_begun(run))
        family, ranks = began.family(), began.ranks()
        os.kill(ranks[rank], signal.SIGSTOP)
        try:
            line = bench.must_be_one_line(began.wait(TIMEOUT + 60))
        finally:
            began.kill()
            _kill(family)
        if not any(f"{word} {rank}" in line for word in ("rank", "process")):
            raise Failed(f"does not say that it is rank {rank}: {line}")
        bench.outcome.note = line[:200]

    return Case("stopped rank", f"rank {rank} of 2", act)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def killed_parent(kind: str, *more: str) -> Case:
    """Return a case that kills only the parent process: its children must end, and the run must be resumable."""

    def act(bench: Bench, place: Path) -> None:
        run = place / "run"
        began = start(bench.command(kind, run, *more), place / "first")
        began.until(_epoch_has_begun(run))
        family = began.family()
        if len(family) == 1:
            raise Failed("started no processes")
        os.kill(began.process.pid, signal.SIGKILL)
        began.wait()
        until_gone(family)
        if not more:
            bench.must_go_on(kind, place, run)

    return Case("killed parent", f"{kind} {' '.join(more)}".strip(), act)


def cold_cache(kind: str) -> Case:
    """Return a case in which three runs start at once on an empty cache: all end well, with the same numbers."""

    def act(bench: Bench, place: Path) -> None:
        bench.unbroken(kind)
        runs = [place / name / "run" for name in "abc"]
        began = [start(bench.command(kind, run, caches=place / "caches"), run.parent) for run in runs]
        for run, ended in zip(runs, [running.wait() for running in began], strict=True):
            if ended.status:
                raise Failed(f"{run.parent.name}: {ended}")
            bench.must_equal(kind, run)
        if left := [path.name for path in (place / "caches").rglob(".*")]:
            raise Failed(f"left behind: {', '.join(left)}")

    return Case("cold cache", f"three of {kind}", act)


def _room_for(kind: str, bench: Bench, before: tuple[str, ...], half: str = "") -> int:
    """Return the pages that these files of the undisturbed run take, plus half of another file's."""
    run, _ = bench.unbroken(kind)

    def size(pattern: str) -> int:
        return sum(pages(path) for path in run.parent.glob(pattern))

    return sum(map(size, before)) + (size(half) // 2 if half else 0)


LOG, LAST, BEST = "run/log.txt", "run/checkpoints/last.safetensors", "run/checkpoints/best.safetensors"
TOKENS, TITLES, IMAGES = "caches/tokens*", "caches/states-text*", "caches/states-image*"
# Saving during epochs would need twice the space of the state before anything else is written.
SELDOM = ("--save_steps", "0")
# By the write that finds no space: the kind of run, the files written before it, and the file that is half written. If
# there are none, the disk is full from the start.
WRITES = {
    "log": ("text", (), ""),
    "tokens": ("cached", (LOG,), TOKENS),
    "states of titles": ("cached", (LOG, TOKENS), TITLES),
    "states of images": ("cached", (LOG, TOKENS, TITLES), IMAGES),
    "options": ("image", (LOG,), ""),
    "last": ("image", (LOG, "run/options.json"), LAST),
    "best": ("image", (LOG, "run/options.json", LAST), BEST),
    "metrics": ("image", (LOG, "run/options.json", LAST, BEST), ""),
}


def full_disk(write: str) -> Case:
    """Return a case in which the disk fills up at that write.

    The run must end in one line; once there is space, it must continue to the same numbers.
    """

    def act(bench: Bench, place: Path) -> None:
        kind, before, half = WRITES[write]
        room = _room_for(kind, bench, before, half)
        disk = place / "disk"
        with small_disk(disk, room):
            if not room:
                fill(disk)
            ended = start(bench.command(kind, disk / "run", *SELDOM), place / "first").wait()
            _ended_of_no_room(bench, ended)
            make_room(disk)
            bench.must_go_on(kind, disk, disk / "run")

    return Case("full disk", write, act)


def _ended_of_no_room(bench: Bench, ended: Ended) -> None:
    if ended.status == 0:
        bench.outcome.note = "went on without"
    else:
        bench.outcome.note = bench.must_be_one_line(ended)[:200]


def full_disk_at_the_result() -> Case:
    """Return a case in which the disk fills up after the last epoch's metrics, before the result is written."""

    def act(bench: Bench, place: Path) -> None:
        bench.unbroken("image")
        disk = place / "disk"
        run = disk / "run"
        with small_disk(disk, 4096):
            began = start(bench.command("image", run, *SELDOM), place / "first")
            began.until(lambda: _epochs_told(run) == bench.epochs)
            fill(disk)
            _ended_of_no_room(bench, began.wait())
            make_room(disk)
            bench.must_go_on("image", disk, run)

    return Case("full disk", "result", act)


def _epochs_told(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_text().count("\n")
    except OSError:
        return 0


def full_disk_at_tables() -> Case:
    """Return a case in which a finished study has no space for its tables."""

    def act(bench: Bench, place: Path) -> None:
        flags = ["--target", str(bench.good["dataset"]), "--encoder", str(bench.good["text"]), "--objective", "bce"]
        flags += ["--method", "frozen", "--embedding_dim", "16", "--max_seq_len", "6", "--title_tokens", "10"]
        flags += ["--batch_size", "64", "--epochs", "1", "--device", "cpu"]
        ended = start(script(STUDY, *flags, "--out", str(place / "study")), place / "made").wait()
        if ended.status:
            raise Failed(f"the study: {ended}")
        table = (place / "study" / "table.csv").read_bytes()
        disk = place / "disk"
        with small_disk(disk, 4096):
            shutil.copytree(place / "study", disk / "study", ignore=shutil.ignore_patterns("table.*"))
            fill(disk)
            again = script(STUDY, *flags, "--out", str(disk / "study"))
            _ended_of_no_room(bench, start(again, place / "first").wait())
            make_room(disk)
            ended = start(again, place / "resumed").wait()
            if ended.status or len((disk / "study" / "table.csv").read_bytes()) != len(table):
                raise Failed(f"continuing: {ended}")

    return Case("full disk", "tables", act)


def mistake(name: str, kind: str, *flags: str) -> Case:
    """Return a case of a user's mistake, in one process or two."""

    def act(bench: Bench, place: Path) -> None:
        ended = start(bench.command(kind, place / "run", *flags), place / "first").wait()
        bench.must_be_one_line(ended)
        if (place / "run").exists():
            raise Failed("left a run folder behind")

    return Case("mistake", f"{name}, {kind}", act)


def hostile_file(case) -> Case:
    """Return a case of an invalid file: it must end in one line, in bounded time and memory."""

    def act(bench: Bench, place: Path) -> None:
        import hostile

        (place / "files").mkdir(parents=True)
        flags = case.prepare(place / "files", bench.good_for_hostile_files)
        bench.outcome.errors = 1
        began = time.monotonic()
        ended, mebibytes = bench.launcher.run(script(case.script, *flags), place, SECONDS_TO_END + hostile.SECONDS)
        seconds = time.monotonic() - began
        wrong = hostile.complaint(case, hostile.Outcome(ended.status, ended.out, ended.err, seconds, mebibytes))
        if wrong:
            raise Failed(" ".join(wrong.split())[-300:])
        bench.outcome.one_line = 1
        bench.outcome.note = ended.errors()[-1][:200]

    return Case("hostile file", case.name, act)


def every_case(seed: int) -> dict[str, list[Case]]:
    """Return all cases of the campaign, by kind."""
    import hostile

    rng = random.Random(seed)
    by_kind: dict[str, list[Case]] = {}

    def add(cases: Iterator[Case] | list[Case]) -> None:
        for case in cases:
            by_kind.setdefault(case.kind, []).append(case)

    add(interrupted(kind, signal.SIGKILL, rng.random()) for _ in range(5) for kind in KINDS)
    add(interrupted(kind, signal.SIGTERM, rng.random()) for kind in itertools.islice(itertools.cycle(KINDS), 10))
    add([*map(full_disk, WRITES), full_disk_at_the_result(), full_disk_at_tables()])
    add(map(stopped_rank, (1, 0)))
    add(
        [
            killed_parent("two processes"),
            killed_parent("image"),
            killed_parent("image", "--nproc", "2"),
        ]
    )
    add([cold_cache("cached"), cold_cache("text")])
    for kind in ("text", "two processes"):
        add(
            [
                mistake("no dataset", kind, "--dataset", "/nowhere"),
                mistake("no such encoder", kind, "--text_encoder", "no-such-bert"),
                mistake("a misspelt flag", kind, "--batchsize", "8"),
                mistake("a value out of range", kind, "--dropout", "1.5"),
                mistake("a value that is not a number", kind, "--lr", "fast"),
            ]
        )
    add(map(hostile_file, hostile.cases()))
    return by_kind


def short_form(seed: int) -> list[Case]:
    """Return a case of each kind that has no test of its own elsewhere; they run for every change."""
    rng = random.Random(seed)
    return [
        interrupted("cached", signal.SIGKILL, rng.uniform(0.5, 0.95)),
        full_disk("states of images"),
    ]


def try_cases(cases: list[Case], bench: Bench, until: float, say: Callable[[str], None]) -> list[Outcome]:
    """Try the cases and return their outcomes; cases that would start after `until` are skipped."""
    outcomes = []
    for number, case in enumerate(cases, start=1):
        outcome = bench.outcome = Outcome(case.kind, case.name)
        place = bench.out / case.kind.replace(" ", "-") / f"{number:03d}"
        began = time.monotonic()
        try:
            if began > until:
                raise Skipped("no time left")
            case.act(bench, place)
        except Skipped as reason:
            outcome.skipped = str(reason)
        except KeyboardInterrupt:
            # The table of the cases tried so far is still written.
            break
        except Exception as error:
            outcome.failure = str(error) if isinstance(error, Failed) else repr(error)
        outcome.seconds = time.monotonic() - began
        outcomes.append(outcome)
        state = f"FAILED, {outcome.failure}" if outcome.failure else f"skipped, {outcome.skipped}"
        text = state if outcome.failure or outcome.skipped else f"ok  {outcome.note}"
        say(f"{number:3d}/{len(cases)}  {case}  ({outcome.seconds:.0f} s)  {text}")
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """Return the table: for each kind, cases tried, passed, failed, and errors that ended in one line with status 2."""
    from transrec.reports.tables import markdown

    rows = []
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    for name, of in [*((kind, [o for o in outcomes if o.kind == kind]) for kind in kinds), ("all", outcomes)]:
        tried = [outcome for outcome in of if not outcome.skipped]
        failed = sum(bool(outcome.failure) for outcome in tried)
        errors, one_line = sum(o.errors for o in tried), sum(o.one_line for o in tried)
        share = f"{one_line} of {errors}" if errors else "-"
        rows.append([name, *map(str, (len(of), len(tried), len(tried) - failed, failed)), share])
    header = ["case", "cases", "tried", "passed", "failed", "errors in one line, status as said"]
    failures = [f"- {o.kind}: {o.name}: {o.failure}" for o in outcomes if o.failure]
    return "\n".join([markdown(header, rows), *(["", *failures] if failures else [])])


def main(arguments: argparse.Namespace) -> int:
    out = arguments.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if arguments.short:
        cases = short_form(arguments.seed)
    else:
        # Take the kinds alternately, so that a campaign that runs out of time has tried some of each.
        cases = [case for turn in itertools.zip_longest(*every_case(arguments.seed).values()) for case in turn if case]
    if arguments.only:
        cases = [case for case in cases if any(text in str(case) for text in arguments.only)]
    bench = Bench(out, SHORT_EPOCHS if arguments.short else EPOCHS)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        outcomes = try_cases(
            cases, bench, time.monotonic() + 60 * arguments.minutes, lambda line: print(line, flush=True)
        )
    finally:
        bench.close()
        end_all()
    text = f"seed {arguments.seed}, {len(cases)} cases\n\n{table(outcomes)}\n"
    print(f"\n{text}")
    (out / "table.md").write_text(text)
    (out / "cases.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    return int(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of faults (default: 0)")
    parser.add_argument("--minutes", type=float, default=20, help="start no case later than this (default: 20)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only cases whose kind and name contain one of these")
    parser.add_argument("--short", action="store_true", help="only the short form: few cases, over shorter runs")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "faults", help="(default: runs/faults)")
    MARK = "TRANSREC_FAULTS_IN_OWN_MOUNTS"
    if MARK not in os.environ:
        os.environ[MARK] = "1"
        command = in_own_mounts([sys.executable, *sys.argv])
        os.execvp(command[0], command)
    sys.exit(main(parser.parse_args()))
