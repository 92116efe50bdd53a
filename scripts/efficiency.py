"""Measure the cost of each method per epoch, with TPME (IISAN, the table of performance and efficiency).

    python scripts/efficiency.py --dataset Dataset/Scientific --epochs 3
    python scripts/efficiency.py --synthetic 12000,20000 --methods run_fft run_IISAN_cached

Runs the scripts of Downstream/Multimodal one after the other, each in its own process on the same data, and writes
efficiency.md, efficiency.json and efficiency.png to --out. Every other flag is passed to all scripts. run_frozen runs
its backbones in every step, as in the paper; --cached auto computes their output only once. --synthetic generates
users, titles and images, and backbones of the size of BERT-base and ViT-base with random weights (--tiny: small ones).
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from transrec import settings
from transrec.arguments import Parser
from transrec.command import reporting, run_script
from transrec.data.demo import Domain, make_domain_with_store, make_image_backbone, make_text_backbone
from transrec.errors import TransrecError, about_file, printable
from transrec.paths import REPOSITORY, default_runs_folder, make_folder, resolve, write_text
from transrec.reports.efficiency import plot, table, tpme_by_method
from transrec.reports.tables import read_result
from transrec.reports.tpme import WEIGHTS

SCRIPTS = REPOSITORY / "Downstream" / "Multimodal" / "script"
METHODS = ("run_fft", "run_adapter", "run_lora", "run_bitfit", "run_frozen", "run_IISAN", "run_IISAN_cached")
# By default a frozen run computes its backbones' output only once, but the paper's table counts it in every step.
AS_PUBLISHED = {"run_frozen": ["--cached", "no"]}
BASE = {"hidden_size": 768, "layers": 12, "heads": 12, "inner_size": 3072}


def synthetic(sizes: str, out: Path, tiny: bool) -> list[str]:
    """Create the synthetic dataset and backbones if they are missing; returns the flags that name them."""
    try:
        users, items = (int(number) for number in sizes.split(","))
    except ValueError:
        raise TransrecError(f"--synthetic {sizes}: give two numbers, users and items, like 12000,20000") from None
    kind = "tiny" if tiny else "base"
    dataset, text, image = (out / name for name in (f"synthetic-{users}-{items}-{kind}", f"bert-{kind}", f"vit-{kind}"))
    pixels = 32 if tiny else 224
    if not (dataset / "images.lmdb").exists():
        print(f"making {users:,} users and {items:,} items with titles and {pixels} x {pixels} images ...", flush=True)
        with about_file(dataset):
            make_domain_with_store(dataset, Domain("synthetic", users, items, longest=13, seed=0), pixels)
    if not text.exists():
        with about_file(text):
            make_text_backbone(text, **({} if tiny else BASE))
    if not image.exists():
        with about_file(image):
            make_image_backbone(image, **({} if tiny else BASE | {"image_size": 224, "patch_size": 16}))
    return ["--dataset", str(dataset), "--text_encoder", str(text), "--image_encoder", str(image)]


def is_done(folder: Path, words: list[str]) -> bool:
    """Return whether a folder holds a finished run with the flags in `words`.

    Raises TransrecError for flags with other values than the run's, if a resumed run could not change them.
    """
    if not (folder / "result.json").exists():
        return False
    resumed = settings.parse([*words, "--resume", str(folder)], "full", {})
    finished = settings.read_settings(folder, resumed.run.plugin)
    where = dict.fromkeys(("output", "resume"))
    return resumed.as_dict() | where == finished.as_dict() | where


def main(arguments: argparse.Namespace, flags: list[str]) -> None:
    out = resolve(arguments.out) if arguments.out else default_runs_folder() / "efficiency"
    make_folder(out, "--out")
    if arguments.synthetic:
        flags = [*synthetic(arguments.synthetic, out, arguments.tiny), *flags]
    results = {}
    for number, name in enumerate(arguments.methods, start=1):
        folder = out / f"{number}-{name}"
        words = ["--profile", *AS_PUBLISHED.get(name, []), *flags]
        if not is_done(folder, words):
            where = ["--resume" if (folder / "options.json").exists() else "--output", str(folder)]
            command = [sys.executable, str(SCRIPTS / f"{name}.py"), *words, *where]
            print(printable(f"$ {shlex.join(command)}"), flush=True)
            if run_script(command):
                raise TransrecError(
                    f"{name} failed, see above; the same command continues, other settings and data need another --out"
                )
        results[name] = read_result(folder)
        weights = tuple(arguments.weights)
        tpme_of = tpme_by_method(results, weights)
        write_text(out / "efficiency.md", table(results, weights) + "\n")
        content = {name: {"TPME": tpme_of[name], **result} for name, result in results.items()}
        write_text(out / "efficiency.json", json.dumps(content, indent=2) + "\n")
        plot(results, weights, out / "efficiency.png")
    print(f"\n{table(results, weights)}\n\n{out}/efficiency.md, efficiency.json, efficiency.png")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument(
        "--methods", nargs="+", default=METHODS, choices=METHODS, help="scripts to compare (default: all)"
    )
    parser.add_argument(
        "--weights", nargs=3, type=float, default=WEIGHTS, help="TPME's weights of training time, parameters and memory"
    )
    parser.add_argument("--out", help="folder for runs and results (default: runs/efficiency)")
    parser.add_argument(
        "--synthetic", metavar="USERS,ITEMS", help="generate data of this size instead of reading --dataset"
    )
    parser.add_argument("--tiny", action="store_true", help="with --synthetic: use tiny backbones and images")
    with reporting():
        settings.check_flags(parser, sys.argv[1:])
        main(*parser.parse_known_args())
