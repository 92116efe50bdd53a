"""Compare finished runs by their stored ranks: metrics, slices, intervals and significance tests.

    python scripts/evaluate.py runs/adapters/runs/houlsby-* runs/adapters/runs/lora-* --slices popularity history

Runs that differ only in their seed are one method. --baselines popularity item_knn adds baselines that the runs
evaluated. Nothing is trained or ranked again: any metric that is computed from ranks, at any cut-off, takes seconds.
The second table tests each method against the best one, over the same users, with p-values corrected for the number of
tests.

Some options need the models and run them on --device: metrics of recommended lists, such as coverage and gini;
--mask_history and --catalogue, which rank the targets again for runs with other settings; and --trec FOLDER, which
writes the top items of each target, and the targets, in TREC's file formats.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import TransrecError, printable
from transrec.finished import MASKS
from transrec.paths import make_folder, write_text
from transrec.plugins import load_plugins
from transrec.reports.comparison import SIGNIFICANT, Comparison, metrics_at
from transrec.reports.reranking import Reranking
from transrec.reports.significance import CONFIDENCE, CORRECTIONS
from transrec.reports.slices import SLICES
from transrec.reports.tables import comma_separated, markdown
from transrec.reports.trec import write_qrels, write_run
from transrec.training.distributed import start

TESTS = {"McNemar": "McNemar", "Wilcoxon": "Wilcoxon", "paired_t": "paired t"}


def cell(value: float | int | str) -> str:
    """Return a float with four decimals, a count with all its digits."""
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def with_deviation(row: dict, name: str) -> str:
    """Return a metric's mean, with its standard deviation if there are several seeds."""
    deviation = row[f"{name} deviation"]
    return cell(row[name]) + (f" ± {cell(deviation)}" if deviation != "" else "")


def main(arguments) -> None:
    load_plugins(arguments.plugin)
    depths = (
        ("cutoffs", min(arguments.cutoffs)),
        ("test_cutoff", arguments.test_cutoff),
        ("trec_depth", arguments.trec_depth),
    )
    for name, value in depths:
        if value < 1:
            raise TransrecError(f"--{name} {value}: must be at least 1")
    metrics = metrics_at(arguments.metrics, arguments.cutoffs)
    tested_metric = arguments.test_metric or ("hr" if arguments.test == "McNemar" else "ndcg")
    (test_metric,) = metrics_at([tested_metric], [arguments.test_cutoff], "test_metric")
    of_lists = any(each.metric.needs_lists for each in metrics)
    has_models = arguments.mask_history or arguments.catalogue or arguments.trec or of_lists
    device = start(arguments.device).device if has_models else "cpu"
    reranking = Reranking(arguments.mask_history, arguments.catalogue, arguments.plugin, device)
    comparison = Comparison(arguments.runs, arguments.part, arguments.plugin, arguments.baselines, reranking)
    tested = []
    if len(comparison.compared) > 1:
        tested = comparison.tests_against_best(test_metric, TESTS[arguments.test], arguments.correction)
    rows = comparison.rows(metrics, arguments.slices)
    names = [each.name for each in metrics]
    header = ["slice", "targets", "method", "seeds"]
    print(
        markdown(
            [*header, *names],
            [[*(cell(row[name]) for name in header), *(with_deviation(row, name) for name in names)] for row in rows],
        )
    )
    if arguments.out:
        write_text(arguments.out, comma_separated(rows))
    if tested:
        lines = [[*(cell(value) for value in row.values()), yes_or_no(row["p"])] for row in tested]
        print(f"\n{markdown([*tested[0], 'differs from the best'], lines)}")
        print(
            f"\nlow and high: {CONFIDENCE:.0%} bootstrap interval over users. p: {arguments.test} against the best, "
            f"{arguments.correction} over {len(tested) - 1} tests, {SIGNIFICANT:g} is the limit."
        )

    if arguments.trec:
        write_trec(comparison, reranking, arguments)


def write_trec(comparison: Comparison, reranking: Reranking, arguments) -> None:
    folders = [folder for method in comparison.methods for folder in method.folders]
    if len({folder.name for folder in folders}) < len(folders):
        raise TransrecError("--trec: two of the folders have one name, by which files are called; rename one")
    make_folder(arguments.trec, "--trec")
    for number, folder in enumerate(folders):
        run = reranking.load(folder)
        if not number:
            write_qrels(run, arguments.part, arguments.trec / f"{arguments.part}.qrels")
        path = arguments.trec / f"{folder.name}.run"
        write_run(run, arguments.part, path, arguments.trec_depth, arguments.mask_history)
        print(printable(f"written: {path}"))


def yes_or_no(p: float | str) -> str:
    return "" if isinstance(p, str) else "yes" if p < SIGNIFICANT else "no"


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs over the same data")
    parser.add_argument(
        "--baselines", nargs="+", default=[], metavar="NAME", help="baselines to compare, from the runs' stored ranks"
    )
    parser.add_argument(
        "--part", default="test", choices=("validation", "test"), help="part whose targets are used (default: test)"
    )
    parser.add_argument(
        "--metrics", nargs="+", default=["hr", "ndcg", "mrr"], help="metrics to show (default: hr ndcg mrr)"
    )
    parser.add_argument("--cutoffs", nargs="+", type=int, default=[10], help="cut-offs k of the metrics (default: 10)")
    parser.add_argument(
        "--slices", nargs="+", default=[], choices=SLICES.names(), help="groups of targets to show in separate rows"
    )
    parser.add_argument("--test", default="paired_t", choices=TESTS, help="paired test over users (default: paired_t)")
    parser.add_argument("--test_metric", help="metric to test (default: hr with --test McNemar, otherwise ndcg)")
    parser.add_argument("--test_cutoff", type=int, default=10, help="cut-off of --test_metric (default: 10)")
    parser.add_argument(
        "--correction",
        default="holm",
        choices=CORRECTIONS,
        help="correction of the p-values for multiple tests (default: holm)",
    )
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=[], help="plugins that the runs were started with"
    )
    parser.add_argument("--out", type=Path, help="write the first table to this CSV file")
    parser.add_argument(
        "--mask_history", choices=MASKS, help="items to leave out of the ranking (default: as in each run)"
    )
    parser.add_argument(
        "--catalogue", choices=("all",), help="all: rank every item that the items file lists (default: as in each run)"
    )
    parser.add_argument(
        "--trec", type=Path, metavar="FOLDER", help="folder for TREC files: PART.qrels, and NAME.run of each run folder"
    )
    parser.add_argument(
        "--trec_depth", type=int, default=100, help="number of items per target in the files of --trec (default: 100)"
    )
    parser.add_argument(
        "--device", default="auto", help="device that the models run on: auto, cpu, cuda, ... (default: auto)"
    )
    with reporting():
        main(parser.parse_args())
