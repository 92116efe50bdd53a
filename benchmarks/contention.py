"""Seconds of an epoch on cores of its own, and on cores that other programs want too.

    python benchmarks/contention.py --busy 3 --epochs 3

Pretrains on the demo's titles, whose operations are small, so that barriers between threads count. "spinning"
is torch as it comes, "considerate" is what every run of transrec does, "passive" is OMP_WAIT_POLICY=passive. The busy
programs do nothing but count. A run of T threads beside B of them has T / (T + B) of the time of T cores: what it loses
at least.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

from transrec.cpus import usable_cpus
from transrec.data.demo import make_demo
from transrec.reports.tables import markdown

SPINNING = """
from contextlib import nullcontext
from transrec import runner
runner.considerate = nullcontext
"""
TRAIN = """
from transrec.runner import pretrain
pretrain(max_seq_len=10, batch_size=32, lr=1e-3, backbone_lr=1e-3, title_tokens=12)
"""
MODES = {
    "spinning": (SPINNING + TRAIN, {}),
    "passive": (SPINNING + TRAIN, {"OMP_WAIT_POLICY": "passive"}),
    "one thread": (TRAIN, {"OMP_NUM_THREADS": "1"}),
    "considerate": (TRAIN, {}),
}


@contextmanager
def busy_programs(count: int):
    """So many processes that count for as long as the context lasts."""
    with ExitStack() as stack:
        for _ in range(count):
            program = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(program.kill)
        yield


def seconds_per_epoch(mode: str, folder: Path, flags: list[str], limit: float) -> float:
    """The median over the epochs of a run; infinity when it takes longer than `limit` seconds."""
    code, environment = MODES[mode]
    command = [sys.executable, "-c", code, *flags, "--output", str(folder)]
    try:
        subprocess.run(command, env=os.environ | environment, capture_output=True, check=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return float("inf")
    epochs = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return statistics.median(json.loads(epoch)["train_seconds"] for epoch in epochs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=3, help="busy programs beside the run (default: 3)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run (default: 3)")
    parser.add_argument("--modes", nargs="+", default=[*MODES], choices=MODES, help="what to run (default: all)")
    parser.add_argument("--limit", type=float, default=150, help="seconds after which a run is given up (default: 150)")
    arguments = parser.parse_args()
    threads = usable_cpus()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        demo = make_demo(root / "data", root / "backbones")
        flags = ["--dataset", str(demo.source), "--text_encoder", str(demo.text_backbone)]
        flags += ["--epochs", str(arguments.epochs)]
        for mode in arguments.modes:
            of_mode = []
            for busy in (0, arguments.busy):
                with busy_programs(busy):
                    of_mode.append(seconds_per_epoch(mode, root / f"{mode}-{busy}", flags, arguments.limit))
            alone, beside = of_mode
            rows.append([mode, f"{alone:.2f}", f"{beside:.2f}", f"{beside / alone:.1f}"])
            print(f"{mode}: {alone:.2f} s, {beside:.2f} s", flush=True)
    fair = (threads + arguments.busy) / threads
    print(markdown(["seconds per epoch", "alone", f"beside {arguments.busy} busy programs", "times slower"], rows))
    print(f"\nLost at least, with {threads} threads: {fair:.1f} times.")
