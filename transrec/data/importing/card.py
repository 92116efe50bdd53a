"""The data card of an import: what was read, what was dropped and why, and what the new dataset holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transrec
from transrec.data.importing import writing
from transrec.data.moments import date_and_time
from transrec.reports.tables import markdown

if TYPE_CHECKING:
    from transrec.data.importing.job import Job

DUPLICATES = {
    "drop": "of several interactions of a user with an item the earliest is kept",
    "consecutive": "an interaction with the item of the one before it is dropped",
    "keep": "all are kept",
}
# Flags that affect how the import runs but not the dataset that it writes.
OPTIONS_LEFT_OUT = {"out", "overwrite", "memory", "threads"}


def make(job: Job, counted: dict[str, Any], hashes: dict[Path, str], folder: Path) -> dict[str, Any]:
    """Return the data card, a JSON object, of an import whose files are in `folder`."""
    texts = dict(counted["texts"])
    items, touched = texts.pop("items", 0), texts.pop("touched", 0)
    counts = {name: counted[name] for name in ("users", "interactions")}
    counts |= {"items": items, "items touched": touched}
    files = sorted(path.name for path in folder.iterdir())
    summary = {
        "format": job.choice.name,
        "why": job.why or "as the command says",
        "options": _changed_options(job),
        "sources": [
            {
                "file": str(path),
                "bytes": path.stat().st_size,
                "sha256": digest,
                "rows": counted["rows"].get(str(path), 0),
            }
            for path, digest in hashes.items()
        ],
        "rows of interactions": counted["read"]["interactions"],
        "dropped": counted["dropped"] | _dropped_with_users_and_items(counted),
        "order": _order_text(job),
        "duplicates": DUPLICATES[job.options.duplicates],
        "rounds of the k-core": counted["rounds"],
        "ids with white space, which became _": counted["ids changed"],
        "texts": texts,
        "counts": counts,
        "first": _date_text(counted["first"]),
        "last": _date_text(counted["last"]),
        "published": _published_counts(job, counted),
        "notes": job.source.notes(),
        "files": files,
        "transrec": transrec.__version__,
    }
    names = {"users": writing.USERS, "items": writing.ITEMS, "interactions": writing.INTERACTIONS}
    return {name: file for name, file in names.items() if file in files} | {"import": summary}


def text(card: dict[str, Any]) -> str:
    """Return the card as a Markdown table, followed by the order of interactions, duplicates and notes."""
    summary, rows = card["import"], []
    for source in summary["sources"]:
        rows.append([f"rows of {Path(source['file']).name}", f"{source['rows']:,}"])
    for reason, count in summary["dropped"].items():
        rows.append([f"interactions dropped: {reason}", f"{count:,}"])
    rows += [[name, f"{count:,}"] for name, count in summary["counts"].items()]
    rows += [[f"texts {name}", f"{count:,}"] for name, count in summary["texts"].items() if count]
    rows += [[name, summary[name]] for name in ("first", "last") if summary[name]]
    for comparison in summary["published"]:
        difference = f"{comparison['difference']:+,}" if comparison["difference"] else "the same"
        rows.append([f"{comparison['what']}: {comparison['published']:,} as published", difference])
    lines = [
        markdown([summary["format"], ""], rows),
        f"order: {summary['order']}",
        f"duplicates: {summary['duplicates']}",
    ]
    return "\n".join([*lines, *summary["notes"]])


def _changed_options(job: Job) -> dict[str, Any]:
    """Return the flags that differ from their defaults and affect the dataset."""
    changed = {}
    for options in (job.options, job.choice.options):
        defaults = type(options).defaults()
        changed |= {name: value for name, value in dataclasses.asdict(options).items() if value != defaults[name]}
    return {name: value for name, value in changed.items() if name not in OPTIONS_LEFT_OUT}


def _dropped_with_users_and_items(counted: dict[str, Any]) -> dict[str, int]:
    """Return how many interactions were dropped with users and items that have too few, or too many, of them."""
    rest = counted["read"]["interactions"] - sum(counted["dropped"].values()) - counted["interactions"]
    return {"of users or items with too few, or too many, interactions": rest} if rest else {}


def _order_text(job: Job) -> str:
    if not job.has_times:
        return "as the source's rows, which have no times"
    ties = "as the source's rows" if job.options.ties == "row" else "by item id"
    return f"by time, {ties} at equal times"


def _date_text(seconds: int | None) -> str | None:
    return None if seconds is None else date_and_time(seconds)


def _published_counts(job: Job, counted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the publisher's counts, each compared with the count in the source as read."""
    rows = {Path(path).name: count for path, count in counted["rows"].items()}
    here = rows | counted["read"]
    return [
        {"what": what, "published": count, "here": here[what], "difference": here[what] - count}
        for what, count in job.source.published().items()
        if what in here
    ]
