"""Measure the seconds of an epoch on idle cores, and on cores that other programs use as well.

    python benchmarks/contention.py --busy 3 --epochs 3

Pretrains on the demo's titles, whose operations are small, so that barriers between threads matter. "spinning" is
torch's default, "considerate" is what every run of transrec does, and "passive" is OMP_WAIT_POLICY=passive. The busy
programs run an endless loop. With B of them, a run of T threads gets T / (T + B) of the time of T cores, so it becomes
slower by at least (T + B) / T.
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
    """Run the given number of busy processes for as long as the context lasts."""
    with ExitStack() as stack:
        for _ in range(count):
            program = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(program.kill)
        yield


def seconds_per_epoch(mode: str, folder: Path, flags: list[str], limit: float) -> float:
    """Return the median seconds over the epochs of a run; infinity if the run takes longer than `limit` seconds."""
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
    parser.add_argument("--busy", type=int, default=3, help="number of busy programs next to the run (default: 3)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run (default: 3)")
    parser.add_argument("--modes", nargs="+", default=[*MODES], choices=MODES, help="modes to run (default: all)")
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
