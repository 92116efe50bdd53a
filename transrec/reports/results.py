"""Results of finished runs as a pandas DataFrame."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transrec.baselines import BASELINES
from transrec.errors import TransrecError, about_file, printable
from transrec.paths import resolve
from transrec.reports.tables import NUMBERS, baselines_of, costs, read_result

if TYPE_CHECKING:
    from pandas import DataFrame

NAMES = ("name", "method", "item_tower", "dataset")
INTEGERS = ("trainable_parameters", "total_parameters", "epochs_trained", "checkpoint_bytes")


def results(*folders: str | Path) -> "DataFrame":
    """Return the finished runs in the folders as a DataFrame, one row per run, in order.

    Args:
        folders: folders of runs, of studies (whose subfolder `runs` holds runs), or folders that contain run folders.
            In the last two, unfinished runs are left out. A run that is named twice is one row.

    Returns a DataFrame with an index that counts from 0 and the columns:

    - run, name, method, item_tower, dataset (str): the run's folder, its name in tables, the value of --method, the
      value of --item_tower, the name of the dataset's folder; "" if an earlier release did not store it; control
      characters are escaped
    - seed (Int64): `<NA>` if the run did not store it
    - HR@10, NDCG@10 and so on (float64, from 0 to 1): test metrics; NaN for a run with --no_test, and for metrics that
      the run did not compute
    - "validation HR@10" and so on: validation metrics at the best epoch; "popularity HR@10" and so on: test metrics of
      ranking by popularity, and likewise for every other baseline of --baselines
    - trainable_parameters, total_parameters, epochs_trained, checkpoint_bytes (int64)
    - seconds_per_epoch, wall_seconds (float64, seconds); peak_memory_mib, peak_host_memory_mib (float64, MiB)

    Raises TransrecError for a folder without a finished run, and for a damaged result.json; FileError for a folder that
    cannot be read.
    """
    return frame(read_results(*folders))


def read_results(*folders: str | Path) -> dict[Path, dict[str, Any]]:
    """Return the content of result.json for each run in `results`, by folder. Raises the same errors as `results`."""
    runs = {run: None for folder in folders for run in _runs_of(resolve(folder))}
    return {run: read_result(run, tested=False) for run in runs}


def _runs_of(folder: Path) -> list[Path]:
    """Return the run folders that a folder stands for."""
    if (folder / "options.json").exists() or (folder / "result.json").exists():
        return [folder]
    within = folder / "runs" if (folder / "runs").is_dir() else folder
    with about_file(within, what="cannot be read"):
        runs = sorted(path.parent for path in within.glob("*/result.json"))
    if not runs:
        raise TransrecError(f"{folder}: holds no finished run; name a run's folder, or a study's --out")
    return runs


def frame(results_by_folder: Mapping[Path, dict[str, Any]]) -> "DataFrame":
    """Return the DataFrame of `results` from the content of each folder's result.json."""
    from pandas import DataFrame

    rows = [_row(folder, result) for folder, result in results_by_folder.items()]
    others = {"run", *NAMES, "seed", *NUMBERS}
    scores = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in others]
    kinds = dict.fromkeys(("run", *NAMES), "str") | {"seed": "Int64"} | dict.fromkeys(scores, "float64")
    kinds |= {name: "int64" if name in INTEGERS else "float64" for name in NUMBERS}
    return DataFrame(rows, columns=list(kinds)).astype(kinds)


def _row(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    parts = {"": result.get("test", {}), "validation ": result["validation"]}
    if "popularity" in result:
        parts |= {f"{baseline} ": metrics for baseline, metrics in baselines_of(result).items()}
    scores = {printable(f"{prefix}{name}"): value for prefix, part in parts.items() for name, value in part.items()}
    names = {name: printable(str(result.get(name, ""))) for name in NAMES}
    seed = result.get("seed")
    labels = {"run": printable(str(folder)), **names, "seed": seed if isinstance(seed, int) else None}
    return scores | labels | {name: result[name] for name in NUMBERS}


def summary(runs: "DataFrame") -> dict[str, float | int]:
    """Return the numbers in a table's row of runs over several seeds, for other programs; NaN if a number is missing.

    Args:
        runs: rows of `results`.
    """
    numbers: dict[str, float | int] = {"seeds": len(runs)}
    first = runs.iloc[0]
    for name in runs.columns.difference(["run", *NAMES, "seed", *NUMBERS], sort=False):
        if name.partition(" ")[0] in BASELINES.names():
            numbers[name] = first[name]
            continue
        values = runs[name].dropna().tolist()
        numbers[name] = statistics.mean(values) if values else math.nan
        numbers[f"{name} deviation"] = statistics.stdev(values) if len(values) > 1 else math.nan
    means = {name: statistics.mean(runs[name].tolist()) for name in ("epochs_trained", "wall_seconds")}
    sizes = {name: int(first[name]) for name in ("total_parameters", "checkpoint_bytes")}
    return numbers | costs(runs.to_dict("records")) | means | sizes
