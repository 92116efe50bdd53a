"""The whole job on built-in data: pretrain on a source domain, adapt to a target domain, print one table.

    python scripts/quickstart.py        (or: make demo)

Makes a two-domain dataset and a tiny BERT, pretrains SASRec+BERT on the source, and adapts to the small target by full
fine-tuning, Houlsby adapters and a frozen backbone, beside training from scratch and ranking by popularity. Each step
runs the script that a user would run, with the flags printed; results go to runs/quickstart/.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from transrec.data.demo import make_demo
from transrec.paths import REPOSITORY, default_runs_folder
from transrec.reports.tables import COLUMNS, markdown, metric_cells, read_result, result_row

SIZES = ["--title_tokens", "12", "--max_seq_len", "10"]
SCRATCH_RATES = ["--lr", "1e-3", "--backbone_lr", "1e-3"]


def run(title: str, script: str, folder: Path, *flags: str) -> None:
    command = [sys.executable, str(REPOSITORY / script), *flags, *SIZES, "--output", str(folder)]
    print(f"\n## {title}\n$ {shlex.join(command)}", flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    runs = default_runs_folder() / "quickstart"
    shutil.rmtree(runs, ignore_errors=True)
    print("making the demo dataset and backbone ...", flush=True)
    source, target, backbone = make_demo(REPOSITORY / "Dataset" / "demo", REPOSITORY / "pretrained_models")
    text = ["--text_encoder", str(backbone)]
    pretrained = ["--dataset", str(target), *text, "--checkpoint", str(runs / "source")]

    run(
        "Pretrain on the source domain",
        "Pretraining/Text/script/sm_base_sasrec.py",
        runs / "source",
        *["--dataset", str(source), *text, *SCRATCH_RATES, "--epochs", "10"],
    )
    adapted = {
        "full fine-tuning": ("finetune.py", ["--lr", "3e-4", "--backbone_lr", "1e-4", "--epochs", "15"]),
        "Houlsby adapters": ("adapter_houlsby.py", ["--adapter_lr", "1e-3", "--epochs", "15"]),
        "frozen backbone": ("frozen.py", ["--lr", "3e-4", "--epochs", "15"]),
    }
    rows = []
    for title, (script, flags) in adapted.items():
        folder = runs / Path(script).stem
        run(f"Adapt to the target domain: {title}", f"Downstream/Text/script/{script}", folder, *pretrained, *flags)
        rows.append([title, *result_row(read_result(folder))])
    scratch = ["--dataset", str(target), *text, "--random_backbone", *SCRATCH_RATES, "--epochs", "30"]
    run("From scratch on the target domain", "Downstream/Text/script/finetune.py", runs / "scratch", *scratch)
    result = read_result(runs / "scratch")
    rows.append(["from scratch", *result_row(result)])
    rows.append(["popularity", *metric_cells(result["popularity"]), "0", "-", "-"])
    table = markdown(["target domain, test", *COLUMNS], rows)
    (runs / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\nTable and runs: {runs}")


if __name__ == "__main__":
    main()
