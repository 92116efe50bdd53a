"""Run the complete workflow on generated data: pretrain on a source domain, adapt to a target domain, print results.

    python scripts/quickstart.py        (or: make demo)

Generates a two-domain dataset with titles and images, a tiny BERT and a tiny ViT. Pretrains SASRec over each backbone
on the source, and adapts it to the small target by full fine-tuning, Houlsby adapters and a frozen backbone, compared
with training from scratch and ranking by popularity. Then trains over titles and images together, without a source:
full fine-tuning, frozen backbones, and IISAN on cached hidden states. Each step runs the script that a user would run
and prints its flags; results go to runs/quickstart/.
"""

import shlex
import shutil
import sys
from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting, run_script
from transrec.data.demo import make_demo
from transrec.errors import TransrecError, printable
from transrec.paths import REPOSITORY, default_runs_folder, write_text
from transrec.reports.efficiency import tpme_by_method
from transrec.reports.tables import COLUMNS, markdown, metric_cells, read_result, result_row
from transrec.reports.tpme import WEIGHTS

SIZES = ["--max_seq_len", "10", "--batch_size", "32"]
SCRATCH_RATES = ["--lr", "1e-3", "--backbone_lr", "1e-3", "--patience", "30"]
FULL, ADAPTED = ["--lr", "3e-4", "--backbone_lr", "1e-4"], ["--adapter_lr", "1e-3"]


def run(title: str, script: str, folder: Path, *flags: str) -> Path:
    command = [sys.executable, str(REPOSITORY / script), *flags, *SIZES, "--output", str(folder)]
    print(f"\n## {title}\n{printable(f'$ {shlex.join(command)}')}", flush=True)
    if run_script(command):
        raise TransrecError(f"{script} failed, see above")
    return folder


def main() -> None:
    Parser(__doc__).parse_args()
    runs = default_runs_folder() / "quickstart"
    shutil.rmtree(runs, ignore_errors=True)
    print("making the demo datasets and backbones ...", flush=True)
    demo = make_demo(REPOSITORY / "Dataset" / "demo", REPOSITORY / "pretrained_models")
    target = ["--dataset", str(demo.target), "--epochs", "15"]
    rows = []

    text = ["--text_encoder", str(demo.text_backbone), "--title_tokens", "12"]
    source = run(
        "Pretrain over titles on the source domain",
        "Pretraining/Text/script/sm_base_sasrec.py",
        runs / "text-source",
        *["--dataset", str(demo.source), *text, *SCRATCH_RATES, "--epochs", "10"],
    )
    for title, script, flags in (
        ("titles, full fine-tuning", "finetune", FULL),
        ("titles, Houlsby adapters", "adapter_houlsby", ADAPTED),
        ("titles, frozen backbone", "frozen", ["--lr", "3e-4"]),
    ):
        flags = [*target, *text, "--checkpoint", str(source), *flags]
        rows.append([title, run(title, f"Downstream/Text/script/{script}.py", runs / f"text-{script}", *flags)])
    scratch = [*target, *text, "--random_backbone", *SCRATCH_RATES, "--epochs", "30"]
    title = "titles, from scratch"
    rows.append([title, run(title, "Downstream/Text/script/finetune.py", runs / "text-scratch", *scratch)])

    image = ["--image_encoder", str(demo.image_backbone)]
    source = run(
        "Pretrain over images on the source domain",
        "Pretraining/CV/script/sm_vit_sasrec.py",
        runs / "image-source",
        *["--dataset", str(demo.source), *image, *SCRATCH_RATES, "--epochs", "6"],
    )
    title = "images, Houlsby adapters"
    flags = [*target, *image, "--checkpoint", str(source), *ADAPTED]
    rows.append([title, run(title, "Downstream/CV/script/sm_vit_adapter.py", runs / "image-adapter", *flags)])
    title = "images, from scratch"
    scratch = [*target, *image, "--random_backbone", *SCRATCH_RATES, "--epochs", "30"]
    rows.append([title, run(title, "Downstream/CV/script/sm_vit.py", runs / "image-scratch", *scratch)])

    results = [(title, read_result(folder)) for title, folder in rows]
    target_table = markdown(
        ["target domain", *COLUMNS],
        [
            *([title, *result_row(result)] for title, result in results),
            ["popularity", *metric_cells(results[0][1]["popularity"]), "0", "-", "-"],
        ],
    )

    both = ["--dataset", str(demo.source), *text, *image, "--epochs", "3"]
    results = {}
    for title, script, flags in (
        ("full fine-tuning", "run_fft", SCRATCH_RATES),
        ("frozen backbones", "run_frozen", ["--lr", "1e-3"]),
        ("IISAN, cached", "run_IISAN_cached", ["--lr", "1e-3", "--adapter_lr", "1e-3"]),
    ):
        script_path = f"Downstream/Multimodal/script/{script}.py"
        folder = run(f"Titles and images, {title}", script_path, runs / script, *both, *flags)
        results[title] = read_result(folder)
    tpme_of = tpme_by_method(results, WEIGHTS)
    both_table = markdown(
        ["source domain, titles and images", *COLUMNS, "TPME"],
        [[title, *result_row(result), f"{tpme_of[title]:.2f}"] for title, result in results.items()],
    )
    table = f"{target_table}\n\n{both_table}"
    write_text(runs / "table.md", table + "\n")
    print(f"\n{table}\n\nTable and runs: {runs}")


if __name__ == "__main__":
    with reporting():
        main()
