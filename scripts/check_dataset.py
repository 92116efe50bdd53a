"""Check a dataset folder, and print and plot what is in it.

    python scripts/check_dataset.py Dataset/Scientific --max_seq_len 10

Mistakes of format stop with the file, the line and the remedy (exit status 2). Otherwise a table says how large the
dataset is as read and as kept (`--min_seq_len`, `--max_seq_len`) and what its split leaks (`--split`), and
NAME-check.png shows its sequence lengths and popularity. Nothing is written into the dataset.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.data.catalog import TITLE, Catalog, check_texts
from transrec.data.dataset import Dataset, find_images, load_dataset
from transrec.data.images.sources import open_source
from transrec.data.interactions import PARTS
from transrec.data.statistics import (
    Activity,
    as_kept,
    as_read,
    cold_items,
    cold_targets,
    early_targets,
    repeated_pairs,
    repeated_targets,
)
from transrec.errors import printable, warn
from transrec.options import DataOptions
from transrec.paths import atomic_write, make_folder, resolve
from transrec.reports.tables import markdown

SEQUENCES = {
    "shortest": np.min,
    "median": np.median,
    "mean": np.mean,
    "90 % quantile": lambda lengths: np.quantile(lengths, 0.9),
    "longest": np.max,
}
BARS = 80


def without_text(catalog: Catalog) -> set[str]:
    """The ids of the items that have no text."""
    return {item for item, text in zip(catalog.ids, catalog.texts, strict=True) if not text.strip()}


def without_image(folder: Path, images: str | None, ids: list[str]) -> set[str] | None:
    """The ids that have no image in `images`, a store, folder or zip, or else in the folder's store; None: no store."""
    if images and Path(images).suffix != ".lmdb":
        return set(ids) - open_source(resolve(images), original=False).find(set(ids)).keys()
    if images or any(folder.glob("*.lmdb")):
        store = find_images(folder, images)
        return {*store.missing(ids), *store.header.grey}
    return None


def table(dataset: Dataset, lacking: dict[str, set[str]]) -> str:
    """What is in the dataset; `lacking` has the ids of the items without a text in each column and without an image."""
    split, ids = dataset.split, np.array(dataset.catalog.ids)
    read, kept = as_read(dataset), as_kept(split)

    def both(name: str, cell: Callable[[Activity], str]) -> list[str]:
        return [name, cell(read), cell(kept)]

    def of_kept(name: str, count: int, total: int) -> list[str]:
        return [name, "", f"{count:,} ({count / total:.1%})"]

    rows = [
        both("users", lambda activity: f"{activity.users:,}"),
        both("items", lambda activity: f"{activity.items:,}"),
        both("interactions", lambda activity: f"{activity.interactions:,}"),
        both("density", lambda activity: f"{activity.density:.4%}"),
        *(
            both(f"sequence length: {name}", lambda activity, of=of: f"{round(float(of(activity.lengths)), 1):,g}")
            for name, of in SEQUENCES.items()
        ),
        both("interactions on the top 1 % of items", lambda activity: f"{activity.top_share(0.01):.1%}"),
        both("interactions on the top 10 % of items", lambda activity: f"{activity.top_share(0.1):.1%}"),
        ["interactions that repeat an earlier one", f"{repeated_pairs(dataset.interactions.sequences):,}", ""],
        ["items that nobody touches", f"{read.untouched:,}", ""],
    ]
    for what, items in lacking.items():
        lacks = np.isin(ids, list(items))
        rows.append([f"items without {what}", f"{lacks.sum():,}", f"{lacks[split.item_rows].sum():,}"])
    rows.append(of_kept("items in no training sequence (cold)", len(cold_items(split)), kept.items))
    for part in PARTS[1:]:
        targets = len(getattr(split, part))
        rows.append([f"{part} targets", "", f"{targets:,}"])
        rows.append(of_kept(f"{part} targets that repeat", len(repeated_targets(split, part)), targets))
        rows.append(of_kept(f"{part} targets of cold items", len(cold_targets(split, part)), targets))
        if (early := early_targets(split, part)) is not None:
            rows.append(of_kept(f"{part} targets before the end of training", len(early), targets))
    return markdown([dataset.name, "read", "kept"], rows)


def plot(dataset: Dataset, path: Path) -> None:
    """Write a PNG: how long users' sequences are, and how popular items are by rank."""
    read, kept = as_read(dataset), as_kept(dataset.split)
    figure = Figure(figsize=(10, 4), layout="constrained")
    lengths, popularity = figure.subplots(1, 2)

    shortest, longest = int(read.lengths.min()), int(read.lengths.max())
    # Bars as wide as a whole number of lengths: else some hold more of them than others.
    width = 1 + (longest - shortest) // BARS
    bins = np.arange(shortest, longest + width + 1, width) - 0.5
    lengths.hist(read.lengths, bins=bins, color="0.75", label="read")
    lengths.hist(kept.lengths, bins=bins, histtype="step", color="C0", linewidth=1.5, label="kept")
    lengths.set(xlabel="interactions of a user", ylabel="users", yscale="log")

    for activity, colour, label, linewidth in ((read, "0.75", "read", 5), (kept, "C0", "kept", 1.5)):
        counts = activity.ranked[activity.ranked > 0]
        popularity.plot(np.arange(1, len(counts) + 1), counts, color=colour, label=label, linewidth=linewidth)
    popularity.set(xlabel="rank of an item", ylabel="interactions with it")
    popularity.set(xscale="log", yscale="log")

    for panel, what in ((lengths, "sequences"), (popularity, "popularity")):
        # A name may hold signs that would be read as a formula.
        panel.set_title(f"{printable(dataset.name)}: {what}", parse_math=False)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    popularity.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("dataset", metavar="PATH", help="dataset folder")
    parser.add_argument("--max_seq_len", type=int, default=DataOptions.max_seq_len, help="L")
    parser.add_argument(
        "--min_seq_len",
        type=int,
        default=DataOptions.min_seq_len,
        help="users with fewer interactions are dropped",
    )
    for name in ("split", "split_at", "validate_at", "catalogue"):
        parser.add_argument(f"--{name}", default=getattr(DataOptions, name), help="as in a run")
    parser.add_argument("--users_file", help="behaviours file, if the folder does not tell which it is")
    parser.add_argument("--items_file", help="items file, if the folder does not tell which it is")
    parser.add_argument("--images", help="image store, folder or zip (default: the only *.lmdb in PATH)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the plot (default: the current one)")
    with reporting():
        options = parser.parse_args()
        names = ("max_seq_len", "min_seq_len", "split", "split_at", "validate_at", "catalogue")
        data = DataOptions(**{name: getattr(options, name) for name in names})
        dataset = load_dataset(
            options.dataset,
            data.max_seq_len,
            data.min_seq_len,
            options.users_file,
            options.items_file,
            splitting=data.splitting,
            with_times=True,
        )
        catalog = dataset.catalog
        lacking = {
            "a title" if column == TITLE else repr(column): without_text(catalog.reading(column))
            for column in dict.fromkeys([TITLE, *filter(None, catalog.columns[1:])])
        }
        for warning in check_texts(catalog) if any(catalog.texts) else ():
            warn(warning)
        no_image = without_image(resolve(options.dataset), options.images, catalog.ids)
        if no_image is not None:
            lacking["an image"] = no_image
        make_folder(options.out, "--out")
        plot_path = options.out / f"{dataset.name}-check.png"
        plot(dataset, plot_path)
        print(table(dataset, lacking))
        print(
            f"kept: users of {data.min_seq_len} interactions or more\n"
            f"{printable(dataset.summary)}\n"
            f"targets that repeat an earlier item of their user are misses under --mask_history seen\n"
            f"plot: {printable(str(plot_path))}"
        )
