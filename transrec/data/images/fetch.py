"""Fetches the images of a table of links into a folder, at a polite rate, and resumes after an interruption."""

import heapq
import queue
import threading
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

from transrec.data import tsv
from transrec.data.images.download import Failure, Limits, Picture, download
from transrec.data.images.pictures import Problem
from transrec.data.images.sources import Folder, ImageEntry, stem
from transrec.errors import Interrupted, TransrecError, about_file, printable
from transrec.locks import Lock
from transrec.paths import atomic_write, make_folder, write_text
from transrec.progress import Bar

REPORT = "fetch_report.tsv"
URL, WEB = "url", "://"
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 300.0
# A host is given up once this many items in a row, after all their retries, got no response.
MAX_SILENT_ITEMS = 5
HOSTS_SHOWN = 3
POLL_SECONDS = 1.0


class FetchProblems(TransrecError):
    """Some items have no image; the report in the folder lists them."""

    exit_status = 1


class ReportLine(NamedTuple):
    """A line of the report. `status` is "fetched", "there" (fetched earlier or added by the user) or "failed"."""

    item: str
    url: str
    status: str
    reason: str
    file: str = ""
    bytes: str = ""


@dataclass
class Link:
    """An item, its addresses still to try, and how often the first of these was retried."""

    item: str
    urls: list[str]
    tries: int = 0


@dataclass(eq=False)
class Host:
    """A server and its pending links.

    Attributes:
        links: heap of the links to this server, by the time at which each may be tried.
        next_at: earliest time of the next request.
        silent_items: number of items in a row that failed without any response.
        given_up: why no more requests are sent to the server; "" while it is in use.
        queued_at: the server's time in the queue of hosts; None if it is not queued.
    """

    name: str
    links: list[tuple[float, int, Link]] = field(default_factory=list)
    next_at: float = 0.0
    silent_items: int = 0
    given_up: str = ""
    queued_at: float | None = None


def fetch_images(links: Path, out: Path, limits: Limits, progress: bool = False) -> list[ReportLine]:
    """Fetch the image of each item in a table of links into the folder `out`; returns the lines of the report.

    Image files are named by item id, as `build_store` expects them. Complete images that are already there are not
    fetched again. If an item has several lines, its first address that gives an image is used.

    Args:
        links: TSV file, item_id<TAB>url, with or without a header.
        progress: print a progress bar and a summary.

    Raises:
        FetchProblems: some items have no image.
        TransrecError: `links` cannot be read, or `out` cannot be written.
    """
    urls = read_links(links)
    make_folder(out, "--out")
    try:
        lock = Lock(out / ".fetch.lock")
    except BlockingIOError as error:
        raise TransrecError(f"{out}: another process is fetching into this folder; wait for it") from error
    try:
        _remove_leftovers(out)
        existing = Folder(out).find(urls.keys())
        lines = _check_existing(out, urls, existing, progress)
        todo = {item: addresses for item, addresses in urls.items() if item not in lines}
        if progress:
            _print_plan(links, todo, len(lines), limits)
        _Fetch(out, existing, lines, limits).run(todo, len(urls), progress)
    finally:
        lock.close()
    if progress:
        print(printable(f"{out}: {_summary(lines.values())}"))
    if failed := [line for line in lines.values() if line.status == "failed"]:
        kinds = Counter(line.reason.partition(":")[0] for line in failed)
        named = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common(6))
        raise FetchProblems(
            f"{out}: {len(failed):,} of {len(urls):,} items have no image ({named}), listed in {out / REPORT}; the "
            f"same command tries them again, and build_lmdb.py --allow_missing does without them"
        )
    return list(lines.values())


def read_links(path: Path) -> dict[str, list[str]]:
    """Return the addresses of each item, in the file's order.

    Raises TransrecError like `tsv.lines`, and if the header lacks `url` or a line lacks an address.
    """
    urls: dict[str, list[str]] = {}
    column = 0
    for number, line in tsv.lines(path, "links"):
        if not column:
            column = _url_column(path, number, line)
            if WEB not in line:
                continue
        item, *fields = line.split("\t")
        if not item or item != item.strip() or " " in item or len(fields) < column or not fields[column - 1].strip():
            raise TransrecError(f"{path}, line {number}: {line[:80]!r} is not item_id<TAB>url; mend or remove it")
        addresses = urls.setdefault(item, [])
        if (address := fields[column - 1].strip()) not in addresses:
            addresses.append(address)
    if not urls:
        raise TransrecError(f"{path}: has a header and no links; it needs one line for each image")
    return urls


def _url_column(path: Path, number: int, line: str) -> int:
    """Return the index of the column of addresses, judging by the first line, which may be a header."""
    if WEB in line:
        return 1
    names = [name.partition(":")[0].strip().lower() for name in line.split("\t")]
    if URL in names[1:]:
        return names.index(URL)
    raise TransrecError(
        f"{path}, line {number}: {line[:80]!r} holds no address and does not name the columns item_id and {URL}; begin "
        f"the file with item_id<TAB>{URL}"
    )


def _remove_leftovers(out: Path) -> None:
    """Remove temporary files left by a killed call."""
    with about_file(out, what="cannot be tidied"):
        for path in out.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _check_existing(
    out: Path, urls: dict[str, list[str]], existing: dict[str, list[ImageEntry]], progress: bool
) -> dict[str, ReportLine]:
    """Return lines of the items whose complete image is there, unless it came from an address no longer in `urls`."""
    earlier = {line.item: line for line in _read_report(out / REPORT) if line.status != "failed"}
    lines, folder = {}, Folder(out)
    for item, files in Bar(existing.items(), desc="check", unit="image", disable=not progress, leave=False):
        known = earlier.get(item)
        for entry in files:
            if known and (known.file, known.bytes) == (entry.name, str(entry.bytes)):
                if known.url and known.url not in map(printable, urls[item]):
                    continue
                url = known.url
            elif _is_whole(folder, entry):
                url = ""
            else:
                continue
            lines[item] = ReportLine(item, url, "there", "", entry.name, str(entry.bytes))
            break
    return lines


def _is_whole(folder: Folder, entry: ImageEntry) -> bool:
    try:
        folder.load(entry, convert=True)
    except Problem:
        return False
    return True


def _read_report(path: Path) -> list[ReportLine]:
    if not path.exists():
        return []
    rows = [line.split("\t") for _, line in tsv.lines(path, "report")]
    return [ReportLine(*row) for row in rows[1:] if len(row) == len(ReportLine._fields)]


def _print_plan(links: Path, todo: dict[str, list[str]], existing_count: int, limits: Limits) -> None:
    hosts = Counter(_host(addresses[0]) for addresses in todo.values())
    shown = ", ".join(f"{host} {count:,}" for host, count in hosts.most_common(HOSTS_SHOWN))
    more = f" and {len(hosts) - HOSTS_SHOWN:,} other hosts" if len(hosts) > HOSTS_SHOWN else ""
    minutes = max(hosts.values(), default=0) / limits.rate / 60
    least = f", which takes {minutes:,.0f} minutes or more at --rate {limits.rate:g}" if minutes >= 1 else ""
    from_ = f" from {shown}{more}" if todo else ""
    print(printable(f"{links}: {len(todo):,} images to fetch{from_}, {existing_count:,} are there{least}"))


def _summary(lines: Iterable[ReportLine]) -> str:
    counts = Counter(line.status for line in lines)
    return f"{counts['fetched']:,} images fetched, {counts['there']:,} were there, {counts['failed']:,} failed"


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


class _Fetch:
    """Hands links to download threads as soon as their hosts may be asked, and writes the images they return.

    The threads only talk to servers. Only the calling thread touches hosts, files and report lines.
    """

    def __init__(self, out: Path, existing: dict[str, list[ImageEntry]], lines: dict[str, ReportLine], limits: Limits):
        self.out, self.existing, self.lines, self.limits = out, existing, lines, limits
        self.hosts: dict[str, Host] = {}
        # Heap of the hosts with links, by the time at which their next link may be tried.
        self.ready: list[tuple[float, int, Host]] = []
        self.count = 0
        self.running = 0
        self.todo: queue.SimpleQueue[Link | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[Link, Picture | Failure]] = queue.SimpleQueue()

    def run(self, todo: dict[str, list[str]], total: int, progress: bool) -> None:
        """Fetch all images and write the report, also if interrupted."""
        for item, urls in todo.items():
            self._enqueue(Link(item, list(urls)))
        threads = min(self.limits.jobs, len(todo))
        try:
            # Decoding an image sets and restores the warning filters of all threads, so ignore warnings throughout.
            bar = Bar(total=total, initial=len(self.lines), unit="image", disable=not progress)
            with warnings.catch_warnings(), bar:
                warnings.simplefilter("ignore")
                for _ in range(threads):
                    # Daemon threads do not keep the command from ending while a server is silent.
                    threading.Thread(target=self._work, daemon=True).start()
                while len(self.lines) < total:
                    self._hand_out_links()
                    self._process_result()
                    bar.update(len(self.lines) - bar.n)
        except Interrupted as stop:
            kept = sum(line.status != "failed" for line in self.lines.values())
            stop.advice = f"{kept:,} of {total:,} images are kept, the same command continues"
            raise
        finally:
            for _ in range(threads):
                self.todo.put(None)
            self._write_report()

    def _enqueue(self, link: Link, at: float = 0.0) -> None:
        name = _host(link.urls[0])
        host = self.hosts.setdefault(name, Host(name))
        if host.given_up:
            self._fail(link, host.given_up)
            return
        self.count += 1
        heapq.heappush(host.links, (at, self.count, link))
        self._enqueue_host(host)

    def _enqueue_host(self, host: Host) -> None:
        at = max(host.next_at, host.links[0][0])
        if host.queued_at is None or at < host.queued_at:
            self.count += 1
            host.queued_at = at
            heapq.heappush(self.ready, (at, self.count, host))

    def _hand_out_links(self) -> None:
        """Hand the threads the links that may be tried now."""
        while self.ready and self.running < self.limits.jobs and self.ready[0][0] <= (now := monotonic()):
            at, _, host = heapq.heappop(self.ready)
            if at != host.queued_at:
                continue
            host.queued_at = None
            if host.links and max(host.next_at, host.links[0][0]) <= now:
                self.todo.put(heapq.heappop(host.links)[2])
                self.running += 1
                host.next_at = now + 1 / self.limits.rate
            if host.links:
                self._enqueue_host(host)

    def _work(self) -> None:
        while link := self.todo.get():
            try:
                self.done.put((link, download(link.urls[0], self.limits)))
            except Failure as failure:
                self.done.put((link, failure))
            # If a thread died without a result, the main loop would wait for it forever.
            except Exception as error:
                self.done.put((link, Failure(f"cannot be fetched: {error!r}")))

    def _process_result(self) -> None:
        """Wait for a result, at most until the next host may be asked, and process it."""
        is_full = self.running >= self.limits.jobs or not self.ready
        wait = POLL_SECONDS if is_full else min(POLL_SECONDS, self.ready[0][0] - monotonic())
        try:
            link, outcome = self.done.get(timeout=max(0.0, wait))
        except queue.Empty:
            return
        self.running -= 1
        host = self.hosts[_host(link.urls[0])]
        if isinstance(outcome, Picture):
            host.silent_items = 0
            self._save(link, outcome)
        else:
            self._handle_failure(host, link, outcome)

    def _handle_failure(self, host: Host, link: Link, failure: Failure) -> None:
        """Retry a failed link later, go on to its next address, or report it as failed."""
        now, will_retry = monotonic(), failure.is_temporary and link.tries < self.limits.retries
        if failure.wait > LONGEST_WAIT_SECONDS:
            self._give_up(host, f"asked to wait: {host.name} wants {failure.wait:,.0f} s without requests")
        elif failure.wait:
            host.next_at = max(host.next_at, now + failure.wait)
        host.silent_items = 0 if failure.answered else host.silent_items + (not will_retry)
        if host.silent_items >= MAX_SILENT_ITEMS:
            self._give_up(host, f"no connection: {host.name} was silent to {MAX_SILENT_ITEMS} items in a row")
        if will_retry:
            link.tries += 1
            self._enqueue(link, now + FIRST_WAIT_SECONDS * 2 ** (link.tries - 1))
        else:
            self._fail(link, str(failure))

    def _give_up(self, host: Host, reason: str) -> None:
        host.given_up = reason
        links, host.links = host.links, []
        for _, _, link in links:
            self._fail(link, reason)

    def _fail(self, link: Link, reason: str) -> None:
        url, *rest = link.urls
        if rest:
            self._enqueue(Link(link.item, rest))
        else:
            self.lines[link.item] = ReportLine(link.item, url, "failed", reason)

    def _save(self, link: Link, picture: Picture) -> None:
        name = f"{stem(link.item)}{picture.suffix}"
        with atomic_write(self.out / name) as temporary:
            temporary.write_bytes(picture.data)
        # build_store refuses items with several files, so remove the others.
        for entry in self.existing.get(link.item, ()):
            if entry.name != name:
                with about_file(self.out / entry.name, what="cannot be replaced"):
                    (self.out / entry.name).unlink(missing_ok=True)
        self.lines[link.item] = ReportLine(
            link.item, link.urls[0], "fetched", picture.remark, name, str(len(picture.data))
        )

    def _write_report(self) -> None:
        header = ("item_id", *ReportLine._fields[1:])
        lines = (header, *self.lines.values())
        write_text(self.out / REPORT, "".join("\t".join(map(printable, line)) + "\n" for line in lines))
