"""Fetching the images that a table of links names into a folder, politely, and going on where it was stopped."""

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
from transrec.data.images.sources import Folder, Found, stem
from transrec.errors import Interrupted, TransrecError, about_file, printable
from transrec.locks import Lock
from transrec.paths import atomic_write, make_folder, write_text
from transrec.progress import Bar

REPORT = "fetch_report.tsv"
URL, WEB = "url", "://"
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 300.0
# A host that said nothing to this many items in a row, tried as often as may be, is not there.
SILENT_ITEMS = 5
HOSTS_SHOWN = 3
POLL_SECONDS = 1.0


class FetchProblems(TransrecError):
    """Some items have no image; the report in the folder lists them."""

    exit_status = 1


class Line(NamedTuple):
    """A line of the report. `status` is "fetched", "there" (from an earlier call, or put there) or "failed"."""

    item: str
    url: str
    status: str
    reason: str
    file: str = ""
    bytes: str = ""


@dataclass
class Link:
    """An item, its addresses that are still to be tried, and how often the first of them was."""

    item: str
    urls: list[str]
    tries: int = 0


@dataclass(eq=False)
class Host:
    """A server.

    Attributes:
        links: those that lead to it, by the time at which each may be tried.
        next_at: when the next request may go.
        silent: how many items in a row failed without a word of it.
        given_up: why it is not asked any more.
        announced: the time at which it stands in the queue of hosts.
    """

    name: str
    links: list[tuple[float, int, Link]] = field(default_factory=list)
    next_at: float = 0.0
    silent: int = 0
    given_up: str = ""
    announced: float | None = None


def fetch_images(links: Path, out: Path, limits: Limits, progress: bool = False) -> list[Line]:
    """Fetch the image of each item of a table of links into the folder `out`; returns the lines of its report.

    An image is named by its item's id, as `build_store` finds it. Images that are there and whole are not fetched
    again. Of an item on several lines the first address that gives an image is taken.

    Args:
        links: TSV file, item_id<TAB>url, with or without a header.
        progress: print what is done, with a bar.

    Raises:
        FetchProblems: some items have no image.
        TransrecError: `links` cannot be read, or `out` not be written.
    """
    urls = read_links(links)
    make_folder(out, "--out")
    try:
        lock = Lock(out / ".fetch.lock")
    except BlockingIOError as error:
        raise TransrecError(f"{out}: another process is fetching into this folder; wait for it") from error
    try:
        _remove_leftovers(out)
        there = Folder(out).find(urls.keys())
        lines = _kept(out, urls, there, progress)
        todo = {item: addresses for item, addresses in urls.items() if item not in lines}
        if progress:
            _say_first(links, todo, len(lines), limits)
        _Fetch(out, there, lines, limits).run(todo, len(urls), progress)
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
    """The addresses of each item, in the file's order.

    Raises TransrecError as `tsv.lines`, for a header without `url`, and for a line without an address.
    """
    urls: dict[str, list[str]] = {}
    place = 0
    for number, line in tsv.lines(path, "links"):
        if not place:
            place = _place_of_urls(path, number, line)
            if WEB not in line:
                continue
        item, *fields = line.split("\t")
        if not item or item != item.strip() or " " in item or len(fields) < place or not fields[place - 1].strip():
            raise TransrecError(f"{path}, line {number}: {line[:80]!r} is not item_id<TAB>url; mend or remove it")
        addresses = urls.setdefault(item, [])
        if (address := fields[place - 1].strip()) not in addresses:
            addresses.append(address)
    if not urls:
        raise TransrecError(f"{path}: has a header and no links; it needs one line for each image")
    return urls


def _place_of_urls(path: Path, number: int, line: str) -> int:
    """Which column holds the addresses, by the first line, a header or not."""
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
    """Remove what a killed call was writing."""
    with about_file(out, what="cannot be tidied"):
        for path in out.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def _kept(out: Path, urls: dict[str, list[str]], there: dict[str, list[Found]], progress: bool) -> dict[str, Line]:
    """Lines of the items whose images are there and whole, from an address that is still theirs if from any."""
    earlier = {line.item: line for line in _read_report(out / REPORT) if line.status != "failed"}
    lines, folder = {}, Folder(out)
    for item, files in Bar(there.items(), desc="check", unit="image", disable=not progress, leave=False):
        known = earlier.get(item)
        for found in files:
            if known and (known.file, known.bytes) == (found.name, str(found.bytes)):
                if known.url and known.url not in map(printable, urls[item]):
                    continue
                url = known.url
            elif _is_whole(folder, found):
                url = ""
            else:
                continue
            lines[item] = Line(item, url, "there", "", found.name, str(found.bytes))
            break
    return lines


def _is_whole(folder: Folder, found: Found) -> bool:
    try:
        folder.load(found, convert=True)
    except Problem:
        return False
    return True


def _read_report(path: Path) -> list[Line]:
    if not path.exists():
        return []
    rows = [line.split("\t") for _, line in tsv.lines(path, "report")]
    return [Line(*row) for row in rows[1:] if len(row) == len(Line._fields)]


def _say_first(links: Path, todo: dict[str, list[str]], kept: int, limits: Limits) -> None:
    hosts = Counter(_host(addresses[0]) for addresses in todo.values())
    shown = ", ".join(f"{host} {count:,}" for host, count in hosts.most_common(HOSTS_SHOWN))
    more = f" and {len(hosts) - HOSTS_SHOWN:,} other hosts" if len(hosts) > HOSTS_SHOWN else ""
    minutes = max(hosts.values(), default=0) / limits.rate / 60
    least = f", which takes {minutes:,.0f} minutes or more at --rate {limits.rate:g}" if minutes >= 1 else ""
    from_ = f" from {shown}{more}" if todo else ""
    print(printable(f"{links}: {len(todo):,} images to fetch{from_}, {kept:,} are there{least}"))


def _summary(lines: Iterable[Line]) -> str:
    counts = Counter(line.status for line in lines)
    return f"{counts['fetched']:,} images fetched, {counts['there']:,} were there, {counts['failed']:,} failed"


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


class _Fetch:
    """Gives links to threads that download, when their hosts may be asked, and writes what they bring.

    Threads only speak to servers; hosts, files and lines are this one's alone.
    """

    def __init__(self, out: Path, there: dict[str, list[Found]], lines: dict[str, Line], limits: Limits):
        self.out, self.there, self.lines, self.limits = out, there, lines, limits
        self.hosts: dict[str, Host] = {}
        # Hosts that have links, by the time at which the next may be tried.
        self.ready: list[tuple[float, int, Host]] = []
        self.count = 0
        self.running = 0
        self.todo: queue.SimpleQueue[Link | None] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[Link, Picture | Failure]] = queue.SimpleQueue()

    def run(self, todo: dict[str, list[str]], total: int, progress: bool) -> None:
        """Fetch all, and write the report, also of what was done when it is stopped."""
        for item, urls in todo.items():
            self._queue(Link(item, list(urls)))
        threads = min(self.limits.jobs, len(todo))
        try:
            # Each decoding sets and restores the filters of all threads.
            bar = Bar(total=total, initial=len(self.lines), unit="image", disable=not progress)
            with warnings.catch_warnings(), bar:
                warnings.simplefilter("ignore")
                for _ in range(threads):
                    # None keeps the command from ending while its server is silent.
                    threading.Thread(target=self._work, daemon=True).start()
                while len(self.lines) < total:
                    self._start()
                    self._take()
                    bar.update(len(self.lines) - bar.n)
        except Interrupted as stop:
            kept = sum(line.status != "failed" for line in self.lines.values())
            stop.advice = f"{kept:,} of {total:,} images are kept, the same command continues"
            raise
        finally:
            for _ in range(threads):
                self.todo.put(None)
            self._write_report()

    def _queue(self, link: Link, at: float = 0.0) -> None:
        name = _host(link.urls[0])
        host = self.hosts.setdefault(name, Host(name))
        if host.given_up:
            self._fail(link, host.given_up)
            return
        self.count += 1
        heapq.heappush(host.links, (at, self.count, link))
        self._announce(host)

    def _announce(self, host: Host) -> None:
        at = max(host.next_at, host.links[0][0])
        if host.announced is None or at < host.announced:
            self.count += 1
            host.announced = at
            heapq.heappush(self.ready, (at, self.count, host))

    def _start(self) -> None:
        """Give the threads what may be tried now."""
        while self.ready and self.running < self.limits.jobs and self.ready[0][0] <= (now := monotonic()):
            at, _, host = heapq.heappop(self.ready)
            if at != host.announced:
                continue
            host.announced = None
            if host.links and max(host.next_at, host.links[0][0]) <= now:
                self.todo.put(heapq.heappop(host.links)[2])
                self.running += 1
                host.next_at = now + 1 / self.limits.rate
            if host.links:
                self._announce(host)

    def _work(self) -> None:
        while link := self.todo.get():
            try:
                self.done.put((link, download(link.urls[0], self.limits)))
            except Failure as failure:
                self.done.put((link, failure))
            # A thread that ended without a word would be waited for.
            except Exception as error:
                self.done.put((link, Failure(f"cannot be fetched: {error!r}")))

    def _take(self) -> None:
        """Wait for a thread, or until a host may be asked, and take what there is."""
        is_full = self.running >= self.limits.jobs or not self.ready
        wait = POLL_SECONDS if is_full else min(POLL_SECONDS, self.ready[0][0] - monotonic())
        try:
            link, outcome = self.done.get(timeout=max(0.0, wait))
        except queue.Empty:
            return
        self.running -= 1
        host = self.hosts[_host(link.urls[0])]
        if isinstance(outcome, Picture):
            host.silent = 0
            self._save(link, outcome)
        else:
            self._try_again(host, link, outcome)

    def _try_again(self, host: Host, link: Link, failure: Failure) -> None:
        """Put off a link that failed, or go to its next address, or give it up."""
        now, again = monotonic(), failure.again and link.tries < self.limits.retries
        if failure.wait > LONGEST_WAIT_SECONDS:
            self._give_up(host, f"asked to wait: {host.name} wants {failure.wait:,.0f} s without requests")
        elif failure.wait:
            host.next_at = max(host.next_at, now + failure.wait)
        host.silent = 0 if failure.answered else host.silent + (not again)
        if host.silent >= SILENT_ITEMS:
            self._give_up(host, f"no connection: {host.name} was silent to {SILENT_ITEMS} items in a row")
        if again:
            link.tries += 1
            self._queue(link, now + FIRST_WAIT_SECONDS * 2 ** (link.tries - 1))
        else:
            self._fail(link, str(failure))

    def _give_up(self, host: Host, reason: str) -> None:
        host.given_up = reason
        links, host.links = host.links, []
        for _, _, link in links:
            self._fail(link, reason)

    def _fail(self, link: Link, reason: str) -> None:
        url, *others = link.urls
        if others:
            self._queue(Link(link.item, others))
        else:
            self.lines[link.item] = Line(link.item, url, "failed", reason)

    def _save(self, link: Link, picture: Picture) -> None:
        name = f"{stem(link.item)}{picture.suffix}"
        with atomic_write(self.out / name) as temporary:
            temporary.write_bytes(picture.data)
        # Of several files of an item, build_store takes none.
        for found in self.there.get(link.item, ()):
            if found.name != name:
                with about_file(self.out / found.name, what="cannot be replaced"):
                    (self.out / found.name).unlink(missing_ok=True)
        self.lines[link.item] = Line(link.item, link.urls[0], "fetched", picture.remark, name, str(len(picture.data)))

    def _write_report(self) -> None:
        header = ("item_id", *Line._fields[1:])
        lines = (header, *self.lines.values())
        write_text(self.out / REPORT, "".join("\t".join(map(printable, line)) + "\n" for line in lines))
