"""Write a finished run as a folder to share: load_run reads it, and parts of it work without transrec.

    python scripts/export_model.py --run runs/20260101-120000-adapter_lora-Target --out my-recommender

OUT holds a model card (README.md), all weights, the items' embeddings with their ids, the user encoder by torch.export
with an example, and LoRA in peft's format. It contains no users and no paths of this computer. To export only the
backbone, with LoRA and similar updates merged, use scripts/export_backbone.py.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import printable
from transrec.finished import load_run
from transrec.reports.release import release

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--dataset", type=Path, help="folder of the run's dataset, if it has moved or grown")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=[], help="plugins that the run was started with"
    )
    with reporting():
        arguments = parser.parse_args()
        run = load_run(arguments.run, arguments.plugin, arguments.dataset)
        release(run, arguments.out, lambda line: print(printable(line)))
        print(printable(str(arguments.out)))
