"""Recommend items with a finished run: to all users of its dataset, to the users in a file, or for a typed history.

    python scripts/recommend.py --run runs/20260101-120000-adapter_lora-Target --k 10 --out top10.csv
    python scripts/recommend.py --run RUN --history "i12 i7 i40" --items new_items.tsv

Nothing is trained: the items of --items, which may be newer than the training data, are encoded from their titles,
images or vectors and ranked among the others. With --evaluate, the last item of each history is the target, and metrics
are printed.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import TransrecError, warn
from transrec.finished import load_run
from transrec.paths import resolve
from transrec.reports.recommendations import (
    SUFFIXES,
    histories_of_dataset,
    output_format,
    parse_histories,
    read_histories,
    rows_of,
    write,
)
from transrec.reports.tables import markdown
from transrec.training.distributed import start


def main(arguments) -> None:
    if arguments.evaluate:
        given = {name: getattr(arguments, name) for name in ("out", "format", "include_seen")}
        if extra := [f"--{name}" for name, value in given.items() if value]:
            raise TransrecError(f"{extra[0]}: not with --evaluate, which prints metrics instead of recommending items")
    kind = output_format(arguments.out, arguments.format)
    run = load_run(arguments.run, arguments.plugin, arguments.dataset).to(start(arguments.device).device)
    if arguments.items:
        run.add_items(arguments.items, arguments.images, arguments.vectors)
    elif arguments.images or arguments.vectors:
        raise TransrecError("--images or --vectors: are of the items that --items adds; give --items, too")
    if arguments.users:
        histories = read_histories(run, resolve(arguments.users), arguments.skip_unknown)
    elif arguments.history:
        histories = parse_histories(run, arguments.history)
    else:
        histories = histories_of_dataset(run, arguments.user)
    if arguments.evaluate:
        histories = histories.with_targets()
    if histories.left_out:
        warn(f"{histories.left_out} left out")
    if arguments.evaluate:
        metrics = run.evaluate(histories=histories.items)
        targets = f"{len(histories.users):,} targets among {len(run.ids):,} items"
        print(markdown([targets, "value"], [[name, f"{value:.4f}"] for name, value in metrics.items()]))
    else:
        write(rows_of(run, histories, arguments.k, not arguments.include_seen), arguments.out, kind)


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument(
        "--users", type=Path, help="file of histories, one user_id<TAB>item item ... per line, oldest first"
    )
    whom.add_argument(
        "--history",
        nargs="+",
        action="extend",
        help='histories, each a quoted list of item ids like "id id id", oldest first',
    )
    whom.add_argument(
        "--user", nargs="+", action="extend", default=[], help="ids of users of the dataset (default: all)"
    )
    parser.add_argument("--k", type=int, default=10, help="number of items per user (default: 10)")
    parser.add_argument("--include_seen", action="store_true", help="also recommend items from the history")
    parser.add_argument("--skip_unknown", action="store_true", help="leave out items of --users that are not ranked")
    parser.add_argument("--items", type=Path, help="items file of additional items to rank, such as new ones")
    parser.add_argument("--images", type=Path, help="image store of --items, for a run that reads images")
    parser.add_argument("--vectors", type=Path, help="file of vectors of --items, for a run that reads vectors")
    parser.add_argument("--dataset", type=Path, help="folder of the run's dataset, if it has moved or grown")
    parser.add_argument(
        "--evaluate", action="store_true", help="print metrics, with the last item of each history as the target"
    )
    parser.add_argument("--out", type=Path, help="file to write (default: standard output)")
    parser.add_argument(
        "--format", choices=sorted({*SUFFIXES.values()}), help="output format (default: by the suffix of --out)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=[], help="plugins that the run was started with"
    )
    with reporting():
        main(parser.parse_args())
