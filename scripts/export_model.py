"""Write a finished run as a folder to give away, which load_run reads, and parts of which need no transrec.

    python scripts/export_model.py --run runs/20260101-120000-adapter_lora-Target --out my-recommender

OUT holds a model card (README.md), all weights, the items' embeddings with their ids, the user encoder by torch.export
with an example, and LoRA in peft's format. No user and no path of this computer is in it. The backbone alone, with LoRA
and its like merged, is what scripts/export_backbone.py writes.
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
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--dataset", type=Path, help="folder of the run's dataset, where it has moved or grown")
    parser.add_argument("--plugin", nargs="+", default=[], help="the plugins that the run was started with")
    with reporting():
        arguments = parser.parse_args()
        run = load_run(arguments.run, arguments.plugin, arguments.dataset)
        release(run, arguments.out, lambda line: print(printable(line)))
        print(printable(str(arguments.out)))
