"""Compare importing a generated dataset of H&M's size, including the 5-core, with the same job in pandas.

    python benchmarks/importing.py --scale 0.1

Writes transactions_train.csv and articles.csv in H&M's layout (at scale 1: 31.8 million transactions of 1.36 million
customers with 105 thousand articles, 3.5 GB) into a temporary folder, and imports them with the format `hm`. The job in
pandas reads text, parses dates, sorts, keeps the first of several purchases of an article, iterates the 5-core, and
writes users.tsv. Each job runs in a process of its own, whose peak memory is measured; the digests show whether the
sequences are the same. Needs pip install 'transrec[import]' pandas. Linux and macOS only.
"""

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transrec.reports.tables import markdown

TRANSACTIONS, CUSTOMERS, ARTICLES = 31_788_324, 1_362_281, 105_542
CORE = 5
# SQL that maps the row number to a pseudo-random number, uniform between 0 and 1.
EVENLY = "(hash(i * 4 + {}) % 1000000007 / 1000000007.0)"


def generate(folder: Path, scale: float) -> None:
    """Write the two files, with item popularity and customer activity as skewed as H&M's."""
    import duckdb

    rows, customers, articles = (max(100, round(count * scale)) for count in (TRANSACTIONS, CUSTOMERS, ARTICLES))
    customer = f"floor({customers} * pow({EVENLY.format(0)}, 1.9))::BIGINT"
    article = f"floor({articles} * pow({EVENLY.format(1)}, 2.5))::BIGINT"
    day = f"DATE '2018-09-20' + floor(734 * {EVENLY.format(2)})::INTEGER"
    database = duckdb.connect(config={"memory_limit": "2GB"})
    database.execute("SET enable_progress_bar = false")
    database.execute(
        f"COPY (SELECT {day} AS t_dat, sha256({customer}::VARCHAR) AS customer_id, "
        f"'0' || (108775015 + 7919 * {article}) AS article_id, 0.05 AS price, 2 AS sales_channel_id "
        f"FROM range({rows}) AS t(i)) TO '{folder}/transactions_train.csv' (HEADER)"
    )
    database.execute(
        f"COPY (SELECT '0' || (108775015 + 7919 * i) AS article_id, 'Strap top ' || i AS prod_name, "
        f"'Vest, top' AS product_type_name, 'Jersey top & more' AS detail_desc FROM range({articles}) AS t(i)) "
        f"TO '{folder}/articles.csv' (HEADER)"
    )


def in_transrec(folder: Path, out: Path, memory: str) -> None:
    from transrec.data.importing.command import main

    main(["hm", str(folder), "--out", str(out), "--k_core", str(CORE), "--memory", memory])


def in_pandas(folder: Path, out: Path) -> None:
    import pandas

    wanted = ["t_dat", "customer_id", "article_id"]
    frame = pandas.read_csv(folder / "transactions_train.csv", dtype=str, usecols=wanted)
    frame["t_dat"] = pandas.to_datetime(frame["t_dat"])
    frame = frame.sort_values(["customer_id", "t_dat", "article_id"]).drop_duplicates(["customer_id", "article_id"])
    while True:
        before = len(frame)
        for column in ("customer_id", "article_id"):
            frame = frame[frame.groupby(column)[column].transform("size") >= CORE]
        if len(frame) == before:
            break
    out.mkdir()
    frame.groupby("customer_id")["article_id"].agg(" ".join).to_csv(out / "users.tsv", sep="\t", header=False)


def measure(job: str, folder: Path, memory: str) -> list[str]:
    """Run a job in a process of its own; return its name, seconds, peak memory, and a digest of its users.tsv."""
    out = folder / job
    started = time.perf_counter()
    code = subprocess.run([sys.executable, __file__, "--job", job, "--folder", str(folder), "--memory", memory])
    seconds = time.perf_counter() - started
    if code.returncode:
        return [job, "failed", "", ""]
    peak = int((folder / f"{job}.peak").read_text())
    digest = hashlib.sha256((out / "users.tsv").read_bytes()).hexdigest()[:12]
    return [job, f"{seconds:.1f}", f"{peak / 2**20:,.0f}", digest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1, help="share of H&M's transactions, customers and articles")
    parser.add_argument("--memory", default="4GB", help="maximum memory of the import by transrec")
    parser.add_argument("--jobs", nargs="+", default=["transrec", "pandas"], help="jobs to run, transrec and/or pandas")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        if options.job == "pandas":
            in_pandas(options.folder, options.folder / "pandas")
        else:
            in_transrec(options.folder, options.folder / "transrec", options.memory)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        (options.folder / f"{options.job}.peak").write_text(str(peak))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        generate(folder, options.scale)
        size = (folder / "transactions_train.csv").stat().st_size
        print(f"{round(TRANSACTIONS * options.scale):,} transactions, {size / 2**20:,.0f} MiB", flush=True)
        rows = [measure(job, folder, options.memory) for job in options.jobs]
    print(markdown(["job", "seconds", "peak memory, MiB", "SHA-256 of users.tsv"], rows))


if __name__ == "__main__":
    main()
