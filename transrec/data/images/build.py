"""Builds an image store: finds each item's image, converts it to a record, and lists unusable images."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from transrec.data.catalog import read_catalog
from transrec.data.images.environment import read_transaction
from transrec.data.images.header import Header, read_header
from transrec.data.images.partial import Partial, Stored
from transrec.data.images.pictures import UNCOMMON_FORMS, Recipe
from transrec.data.images.sources import ImageEntry, Source, open_source
from transrec.data.images.workers import Chunk, outcomes
from transrec.errors import Interrupted, TransrecError, about_file, about_memory, printable
from transrec.paths import file_sha256, make_folder, write_text
from transrec.progress import Bar

# The longest key that LMDB accepts.
LONGEST_ID_BYTES = 511
CHUNK_IMAGES = 32
CHUNK_BYTES = 2**23
COMMIT_IMAGES = 256
COMMIT_BYTES = 2**25


class ImageProblems(TransrecError):
    """Some items have no usable image; the report next to the store lists them."""

    exit_status = 1


class ReportLine(NamedTuple):
    """A line of the report. `outcome` is "problem", "grey" (replaced with a grey image) or "converted"."""

    item: str
    outcome: str
    reason: str
    files: list[ImageEntry]


def build_store(
    items: str | Path,
    images: str | Path,
    out: str | Path,
    size: int,
    kind: str = "jpeg",
    workers: int = 1,
    *,
    quality: int = 95,
    original: bool = False,
    convert: bool = False,
    allow_missing: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> Header:
    """Build the store `out` with one image per item, or continue an interrupted build; returns the store's header.

    Unusable and converted images are listed in `NAME.report.tsv` next to the store. An existing store that equals what
    this call would build is left as it is.

    Args:
        items: TSV file, item_id<TAB>title.
        images: folder or zip of JPEG, PNG and WebP files named by item id; with `original`, an LMDB of the original
            Adapter4Rec or IISAN programs.
        size: S; images are resized to S x S pixels.
        kind: "jpeg", or "raw" for uint8 [3, S, S].
        workers: processes that decode; with more than 1, the calling script needs an `if __name__ == "__main__"` guard.
        quality: JPEG quality, 1 to 100.
        convert: accept animated (first frame), CMYK, palette and 16-bit images too.
        allow_missing: replace each unusable image with a grey one.
        overwrite: replace a store at `out` that was built from other inputs.
        progress: print a progress bar and a summary.

    Raises:
        ImageProblems: some images are unusable; the records of the others are kept for the next call.
        TransrecError: bad input, a different store at `out`, or no disk space.
    """
    items, images, out = Path(items), Path(images), Path(out)
    recipe = Recipe(size, kind, quality, convert)
    if workers < 1:
        raise TransrecError(f"--workers {workers}: must be at least 1")
    ids = read_catalog(items).ids
    for item in ids:
        if len(item.encode()) > LONGEST_ID_BYTES:
            raise TransrecError(
                f"{items}: item id {item[:40]!r}... has {len(item.encode())} bytes; a store takes {LONGEST_ID_BYTES}"
            )
    make_folder(out.parent, "--out")
    source = open_source(images, original)
    entries = source.find(set(ids))
    header = Header(len(ids), size, kind, quality if kind == "jpeg" else None, _source_hash(items, ids, entries))
    if out.is_dir():
        raise TransrecError(f"{out}: is a folder, a store is one file; give another --out")
    if out.exists() and not overwrite:
        existing = _existing_header(out)
        if not existing.serves(header, convert, allow_missing):
            raise TransrecError(f"{out}: there is a store made of something else; give another --out, or --overwrite")
        if progress:
            _print(f"{out}: already made of exactly this, left as it is")
        return existing

    settings = {"size": size, "kind": kind, "quality": header.quality, "original": original, "format": header.format}
    with Partial(out, settings) as partial:
        if partial.discarded and progress:
            _print(f"{partial.path}: was begun with other settings, so it is started again")
        usable = {item: entries[item][0] for item in ids if len(entries.get(item, ())) == 1}
        partial.remove(
            [
                item
                for item, (image, form) in partial.stored.items()
                if usable.get(item) != image or (form and not convert)
            ]
        )
        problems = {item: "several files" if item in entries else "missing" for item in ids if item not in usable}
        problems |= _fill(partial, source, recipe, usable, workers, progress)
        converted = {item: form for item, (_, form) in partial.stored.items() if form}
        remarks, unusable = problems | converted, "grey" if allow_missing else "problem"
        listed = [
            ReportLine(item, unusable if item in problems else "converted", remarks[item], entries.get(item, []))
            for item in ids
            if item in remarks
        ]
        report = _write_report(out, listed)
        if problems and not allow_missing:
            raise ImageProblems(_problem_message(out, report, problems, len(ids)))
        grey = [item for item in ids if item in problems]
        header = replace(header, grey=grey, converted=[item for item in ids if item in converted])
        partial.finish(header, dict.fromkeys(grey, recipe.grey()))
    if progress:
        _print(f"{out}: {header.count:,} images of {size} x {size} pixels, {out.stat().st_size / 2**20:,.1f} MiB")
        if listed:
            _print(f"{report}: lists {len(header.converted):,} converted images, and {len(header.grey):,} made grey")
    return header


def _fill(
    partial: Partial, source: Source, recipe: Recipe, images: dict[str, ImageEntry], workers: int, progress: bool
) -> dict[str, str]:
    """Add the records that `partial` lacks; returns the problem of each unusable image, by item."""
    problems = {}
    records, size = [], 0
    todo = [(item, entry) for item, entry in images.items() if item not in partial.stored]
    bar = Bar(total=len(images), initial=len(images) - len(todo), unit="image", disable=not progress)
    try:
        with bar, about_memory("making images small", "give fewer --workers; the same command continues"):
            for chunk in outcomes(source, recipe, _chunks(todo, recipe.size), workers):
                for item, entry, record, remark in chunk:
                    if record is None:
                        problems[item] = remark
                    else:
                        records.append((item, record, Stored(entry, remark)))
                        size += len(record)
                if len(records) >= COMMIT_IMAGES or size >= COMMIT_BYTES:
                    partial.put(records)
                    records, size = [], 0
                bar.update(len(chunk))
    except Interrupted as stop:
        partial.put(records)
        stop.advice = f"{len(partial.stored):,} of {len(images):,} images are kept, the same command continues"
        raise
    partial.put(records)
    return problems


def _chunks(todo: list[tuple[str, ImageEntry]], size: int) -> Iterator[Chunk]:
    length = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (3 * size * size)))
    return (todo[start : start + length] for start in range(0, len(todo), length))


def _source_hash(items: Path, ids: list[str], entries: dict[str, list[ImageEntry]]) -> str:
    digest = hashlib.sha256(file_sha256(items).encode())
    for item in ids:
        for name, size, content in entries.get(item, ()):
            digest.update(b"%s\0%d\0%s" % (name.encode("utf-8", "surrogateescape"), size, content.encode()))
        digest.update(b"\0")
    return digest.hexdigest()


def _existing_header(out: Path) -> Header:
    try:
        with read_transaction(out) as transaction:
            return read_header(transaction, out)
    except TransrecError as error:
        raise TransrecError(f"{error}; or give another --out, or --overwrite") from error


def _write_report(out: Path, listed: list[ReportLine]) -> Path:
    """Write the report, or remove an older one if there is nothing to list; returns its path."""
    report = out.with_name(f"{out.name}.report.tsv")
    lines = [(item, outcome, reason, "; ".join(file.name for file in files)) for item, outcome, reason, files in listed]
    if lines:
        table = [("item_id", "outcome", "reason", "file"), *lines]
        write_text(report, "".join("\t".join(map(printable, line)) + "\n" for line in table))
    else:
        with about_file(report, what="cannot be removed"):
            report.unlink(missing_ok=True)
    return report


def _print(text: str) -> None:
    print(printable(text))


def _problem_message(out: Path, report: Path, problems: dict[str, str], count: int) -> str:
    kinds = Counter(reason.partition(":")[0] for reason in problems.values())
    named = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
    forms = ", ".join(form for form in UNCOMMON_FORMS if any(form in kind for kind in kinds))
    return (
        f"{out}: not finished, {len(problems):,} of {count:,} items have no image that can be used ({named}), listed "
        f"in {report}; mend them and run the same command again, which does the rest"
        f"{f', or add --convert to take {forms} images too' if forms else ''}, or add --allow_missing for grey images "
        f"in their stead"
    )
