"""Check a dataset folder, and print and plot its statistics.

    python scripts/check_dataset.py Dataset/Scientific --max_seq_len 10 --html scientific.html

If the format has a mistake, the script stops and names the file, the line and the remedy (exit status 2). Otherwise it
prints a table with the size of the dataset as read and as kept (`--min_seq_len`, `--max_seq_len`), what its split leaks
(`--split`) and the number of pictures that cannot be opened, and plots sequence lengths and popularity to
NAME-check.png. `--html` writes all that and more to one page: time line, duplicates, longest titles, example users.
Nothing is written into the dataset.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.data.catalog import TITLE, Catalog, check_texts
from transrec.data.dataset import Dataset, load_dataset
from transrec.data.images.gallery import open_gallery
from transrec.data.interactions import PARTS
from transrec.data.statistics import (
    Activity,
    Repeats,
    activity_as_kept,
    activity_as_read,
    cold_items,
    cold_targets,
    early_targets,
    repeated_targets,
    repeats,
)
from transrec.errors import printable, warn
from transrec.options import DataOptions
from transrec.paths import make_folder, resolve, write_text
from transrec.reports.dataset_page import DatasetCheck, page
from transrec.reports.dataset_plots import write_png
from transrec.reports.tables import markdown

SEQUENCES = {
    "shortest": np.min,
    "median": np.median,
    "mean": np.mean,
    "90 % quantile": lambda lengths: np.quantile(lengths, 0.9),
    "longest": np.max,
}
NAMED = 5


def without_text(catalog: Catalog) -> set[str]:
    """Return the ids of the items without text."""
    return {item for item, text in zip(catalog.ids, catalog.texts, strict=True) if not text.strip()}


def evenly_spread(ids: list[str], most: int | None) -> list[str]:
    """Return at most `most` of the ids, spread evenly over all of them; None: all ids."""
    if most is None or most >= len(ids):
        return ids
    return [ids[place] for place in np.linspace(0, len(ids) - 1, most).astype(int)]


def broken_pictures_note(broken: dict[str, str]) -> list[str]:
    """Return the note on pictures that cannot be decoded; [] if there are none."""
    if not broken:
        return []
    first = "; ".join(f"{item} ({why})" for item, why in list(broken.items())[:NAMED])
    return [f"pictures that cannot be decoded: {len(broken):,}, {first}{'; ...' * (len(broken) > NAMED)}"]


def counts(dataset: Dataset, repeated: Repeats, lacking: dict[str, set[str]]) -> list[list[str]]:
    """Return the dataset's statistics as rows of a name, the value as read, and the value as kept.

    Args:
        repeated: the pairs of a user and an item that interact more than once.
        lacking: ids of the items without a text in each column, without an image, and without an image that can be
            opened, by what they lack.
    """
    split, ids = dataset.split, np.array(dataset.catalog.ids)
    read, kept = activity_as_read(dataset), activity_as_kept(split)

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
            both(
                f"sequence length: {name}",
                lambda activity, statistic=statistic: f"{round(float(statistic(activity.lengths)), 1):,g}",
            )
            for name, statistic in SEQUENCES.items()
        ),
        both("interactions on the top 1 % of items", lambda activity: f"{activity.top_share(0.01):.1%}"),
        both("interactions on the top 10 % of items", lambda activity: f"{activity.top_share(0.1):.1%}"),
        ["interactions that repeat an earlier one", f"{repeated.interactions:,}", ""],
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
    return rows


RUN_FLAGS = ("split", "split_at", "validate_at", "catalogue", "users_file", "items_file")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("dataset", metavar="PATH", help="dataset folder")
    parser.add_argument(
        "--max_seq_len",
        type=int,
        default=DataOptions.max_seq_len,
        help="L, the longest sequence that the user encoder sees",
    )
    parser.add_argument(
        "--min_seq_len",
        type=int,
        default=DataOptions.min_seq_len,
        help="drop users with fewer interactions",
    )
    for name in RUN_FLAGS:
        parser.add_argument(
            f"--{name}", default=getattr(DataOptions, name), help="as the flag of the same name in a training run"
        )
    parser.add_argument("--images", help="image store, folder or zip (default: the only *.lmdb in PATH)")
    parser.add_argument(
        "--pictures", type=int, metavar="N", help="open only N pictures, evenly spread (default: all; 0: none)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with all of this, which works offline")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the plot (default: the current one)")
    with reporting():
        options = parser.parse_args()
        if options.pictures is not None and options.pictures < 0:
            parser.error(f"--pictures {options.pictures}: must be 0 or more")
        data = DataOptions(**{name: getattr(options, name) for name in ("max_seq_len", "min_seq_len", *RUN_FLAGS)})
        dataset = load_dataset(
            options.dataset, data.max_seq_len, data.min_seq_len, data.splitting, data.files, with_times=True
        )
        catalog = dataset.catalog
        lacking = {
            "a title" if column == TITLE else repr(column): without_text(catalog.with_text(column))
            for column in dict.fromkeys([TITLE, *filter(None, catalog.columns[1:])])
        }
        for warning in check_texts(catalog) if any(catalog.texts) else ():
            warn(warning)
        gallery, broken = open_gallery(resolve(options.dataset), options.images, catalog.ids), {}
        if gallery is not None:
            lacking["an image"] = gallery.missing
            broken = gallery.broken(
                evenly_spread([item for item in catalog.ids if item not in gallery.missing], options.pictures)
            )
            lacking["an image that can be opened"] = gallery.missing | broken.keys()
        make_folder(options.out, "--out")
        plot_path = options.out / f"{dataset.name}-check.png"
        write_png(dataset, plot_path)
        repeated = repeats(dataset.interactions.sequences)
        header, rows = [dataset.name, "read", "kept"], counts(dataset, repeated, lacking)
        print(markdown(header, rows))
        notes = [
            f"kept: users of {data.min_seq_len} interactions or more",
            dataset.summary,
            "targets that repeat an earlier item of their user are misses under --mask_history seen",
            *broken_pictures_note(broken),
        ]
        print(*map(printable, notes), printable(f"plot: {plot_path}"), sep="\n")
        if options.html:
            make_folder(options.html.parent, "--html")
            write_text(options.html, page(DatasetCheck(dataset, header, rows, notes, repeated, gallery, broken)))
            print(printable(f"page: {options.html}"))
