"""Run all benchmarks for a device, one after the other, and collect them in one table.

    python benchmarks/bench.py --device cpu        (or: make bench)
    python benchmarks/bench.py --device cuda       (or: make bench-gpu)

Each row is a script of this folder, or a part of the tests, and runs in a process of its own. A finished row is written
at once to OUT/DEVICE.json and DEVICE.md. The same command continues after the last finished row, as long as the code,
its libraries and the device are the same; --again starts from the beginning. If a row fails or exceeds its time limit,
the table says so and the other rows still run. Exits with status 1 if a row failed.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The folder of this file contains modules with the names of other packages.
sys.path[0] = str(HERE.parent)

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from benchmarks.measured import FIGURES  # noqa: E402
from transrec.paths import write_text  # noqa: E402
from transrec.reports.tables import markdown  # noqa: E402
from transrec.training.profiler import environment  # noqa: E402


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        work: readable name of what is measured.
        command: the command; its first word is a file in this folder, or "tests" for pytest with the words that follow.
        goals: minimum values of the script's figures, by name.
        seconds: time limit.
        limits: maximum values of the script's figures, by name.
    """

    work: str
    command: str
    goals: dict[str, float]
    seconds: int = 600
    limits: dict[str, float] = field(default_factory=dict)

    def verdicts(self, figures: dict[str, float]) -> list[str]:
        """Return each goal and limit with whether the figures reach it; a figure that is missing does not."""
        found = [(f"{name} {goal:g}", figures.get(name, -math.inf) >= goal) for name, goal in self.goals.items()]
        found += [
            (f"{name} {most:g} at most", figures.get(name, math.inf) <= most) for name, most in self.limits.items()
        ]
        return [f"{name}: {'reached' if reached else 'missed'}" for name, reached in found]


STEPS = "steps.py --reads multimodal --objective in_batch --batch_size 64 --length 10 --device cuda"
ROWS: dict[str, list[Row]] = {
    "cpu": [
        Row(
            "training step over titles, straightforward against ours",
            "steps.py --methods full lora",
            {"full times faster": 10, "lora times faster": 15},
        ),
        Row(
            "Houlsby in all blocks against the last two",
            "steps.py --only_ours --methods houlsby 'houlsby:--insert item_last2'",
            {"houlsby insert item_last2 times faster than its first": 3},
        ),
        Row(
            "a backbone that stays as it is, run in every step against once",
            "steps.py --only_ours --methods 'frozen:--cached no' frozen",
            {"frozen times faster than its first": 20},
        ),
        Row(
            "the same beneath Houlsby in the user encoder",
            "steps.py --only_ours --methods 'houlsby:--insert user --cached no' 'houlsby:--insert user'",
            {"houlsby insert user times faster than its first": 20},
        ),
        Row(
            "cached IISAN against its matrix products",
            "iisan_cached.py",
            {"share of the products' speed": 0.6, "compiled share of the products' speed": 0.8},
        ),
        Row("ranking 12,000 users over 20,000 items", "evaluation.py", {}),
        Row("top 10 of 100,000 items for 20,000 users", "topk.py --users 20000", {}),
        Row("softmax over 20,000 items", "softmax.py --items 20000", {}),
        Row("softmax over 1,000,000 items", "softmax.py --items 1000000 --chunked_only", {}),
        Row(
            "7 states of 1,000,000 items and two modalities on disk",
            "large_catalogue.py --items 1000000 --states 7 --users 1000",
            {},
            1800,
            {"MiB of its own": 2048, "share of the feed": 0.2},
        ),
        Row("loading a language model", "loading.py", {}, limits={"bf16 held auto, peak against stored bytes": 1.2}),
        Row("reading interactions", "reading.py --interactions 1000000 2000000 4000000 --forms tsv parquet", {}),
        Row("growth of what a run costs", "growth.py", {}),
    ],
    "cuda": [
        Row(
            "cached IISAN at the paper's shapes",
            "iisan_cached.py --device cuda --steps 30",
            {"epochs in a second": 1},
            90,
            {"MiB of memory": 1024},
        ),
        Row("IISAN with running backbones", f"{STEPS} --methods 'iisan:--cached no'", {}, 90),
        Row(
            "full fine-tuning and adapters, BERT-base and ViT-base",
            f"{STEPS} --methods full houlsby lora bitfit",
            {},
            150,
        ),
        Row("ranking 12,000 users over 20,000 items", "evaluation.py --device cuda", {}, 60),
        Row("top 10 of 1,000,000 items", "topk.py --device cuda --items 1000000 --users 20000", {}, 60),
        Row(
            "ranks over NCCL, precisions, the same numbers twice",
            "tests tests/gpu -k 'world_of_one or same_numbers_twice'",
            {},
            90,
        ),
        Row("the demo", "../scripts/quickstart.py", {}, 150),
    ],
}


def measure(row: Row) -> dict[str, Any]:
    """Run a row's script; return its tables, figures, seconds, error (None if there is none) and last lines."""
    file, *flags = shlex.split(row.command)
    command = [sys.executable, *(["-m", "pytest", "-q", "-x"] if file == "tests" else [str(HERE / file)]), *flags]
    paths = filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH")))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        figures = Path(folder) / "figures.json"
        environ = os.environ | {FIGURES: str(figures), "PYTHONPATH": os.pathsep.join(paths)}
        try:
            status = subprocess.run(
                command, cwd=HERE.parent, env=environ, stdout=output, stderr=output, timeout=row.seconds
            ).returncode
            failed = f"status {status}" if status else None
        except subprocess.TimeoutExpired:
            failed = f"not done after {row.seconds} s"
        output.seek(0)
        results = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {"tables": [], "figures": {}}
        last = output.read().splitlines()[-12:] if failed else []
    return {**results, "seconds": round(time.perf_counter() - started, 1), "failed": failed, "last": last}


def page(device: str, facts: dict[str, Any], done: dict[str, Any]) -> str:
    """Return the results so far as Markdown."""
    texts = [f"{name} {value}" for name, value in facts.items() if value is not None]
    lines = [f"# Benchmarks on {'a GPU' if device == 'cuda' else 'a CPU'}", "", ", ".join(texts) + ".", ""]
    cells = []
    for row in ROWS[device]:
        if result := done.get(row.command):
            figures = [f"{name} {value:,.3g}" for name, value in result["figures"].items()]
            failed = [f"failed: {result['failed']}"] if result["failed"] else []
            cells.append(
                [
                    row.work,
                    "; ".join(failed or figures),
                    "; ".join(row.verdicts(result["figures"])),
                    f"{result['seconds']:.0f}",
                ]
            )
    lines.append(markdown(["work", "measured", "goal", "s in all"], cells))
    for row in ROWS[device]:
        result = done.get(row.command, {"tables": [], "last": []})
        if result["tables"] or result["last"]:
            lines += ["", f"## {row.work}", "", f"`{row.command}`", ""]
            lines += ["\n\n".join(result["tables"]), *(["```", *result["last"], "```"] if result["last"] else [])]
    return "\n".join([*lines, ""])


def main(given: argparse.Namespace) -> int:
    if given.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device")
        return 0
    facts = environment(torch.device(given.device), 1) | {"seed": 0}
    file = given.out / f"{given.device}.json"
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() and not given.again else {}
    done = earlier["rows"] if earlier.get("environment") == facts else {}
    rows = ROWS[given.device]
    print(
        f"{len(rows)} rows, of which {sum(row.command in done for row in rows)} are done; results: {file}", flush=True
    )
    given.out.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, unit="row"):
        if row.command in done and not done[row.command]["failed"]:
            continue
        tqdm.write(f"$ {row.command}")
        done[row.command] = measure(row) | {"work": row.work, "date": date.today().isoformat()}
        write_text(file, json.dumps({"environment": facts, "rows": done}, indent=2) + "\n")
        write_text(file.with_suffix(".md"), page(given.device, facts, done))
        tqdm.write("\n\n".join([*done[row.command]["tables"], *done[row.command]["last"]]))
    print(page(given.device, facts, done).partition("\n## ")[0])
    return int(any(result["failed"] for result in done.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(ROWS), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the results")
    parser.add_argument("--again", action="store_true", help="measure finished rows again, too")
    sys.exit(main(parser.parse_args()))
