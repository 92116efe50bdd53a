"""Fetching images from a local server that behaves, and misbehaves, like servers on the web."""

import io
import runpy
import signal
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from transrec.data.images import download, fetch
from transrec.data.images.build import build_store
from transrec.data.images.download import Failure, Limits, is_private, web_address
from transrec.data.images.fetch import FetchProblems, ReportLine, fetch_images, read_links
from transrec.data.images.sources import Folder, stem
from transrec.data.images.store import ImageStore
from transrec.errors import Interrupted, TransrecError

QUICK = Limits(jobs=8, rate=2000, timeout=5, retries=2, allow_private=True)


def image(seed: int = 0, form: str = "JPEG", size: tuple[int, int] = (24, 16), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


class Server(ThreadingHTTPServer):
    """Answers a path by the method of its name in Handler, and records when each path was requested."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, float]] = []
        self.seen: Counter[str] = Counter()

    def handle_error(self, request, client_address):
        """Ignore clients that hang up, which the tests do on purpose."""

    def __call__(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def times(self, path: str) -> list[float]:
        return [at for name, at in self.asked if name == path]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def send(self, body: bytes, status: int = 200, **headers) -> None:
        self.send_response(status)
        for name, value in ({"Content_Type": "image/jpeg", "Content_Length": len(body)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = self.path.lstrip("/")
        self.server.asked.append((path, time.monotonic()))
        self.server.seen[path] += 1
        kind, _, rest = path.partition("/")
        getattr(self, kind.replace("-", "_"))(rest, self.server.seen[path])

    def ok(self, rest: str, _):
        self.send(image(len(rest)))

    def png(self, *_):
        self.send(image(form="PNG"))

    def webp(self, *_):
        self.send(image(form="WEBP"))

    def cmyk(self, *_):
        self.send(image(mode="CMYK"))

    def html_as_jpg(self, *_):
        self.send(b"<!DOCTYPE html><html>sign in</html>", Content_Type="text/html; charset=utf-8")

    def lost(self, *_):
        self.send(b"not here", 404)

    def busy(self, rest: str, count: int):
        if count == 1:
            self.send(b"", int(rest), Retry_After="1")
        else:
            self.send(image())

    def closed_for_a_day(self, *_):
        self.send(b"", 503, Retry_After="86400")

    def failing(self, _, count: int):
        self.send(b"", 500) if count < 3 else self.send(image())

    def breaks_off(self, _, count: int):
        body = image()
        self.send(body[: len(body) // 2], Content_Length=len(body)) if count < 3 else self.send(body)
        self.close_connection = True

    def always_breaks_off(self, *_):
        self.send(image()[:300], Content_Length=9000)
        self.close_connection = True

    def cut_without_length(self, *_):
        self.send(image()[:600], Content_Length=None)

    def says_less(self, *_):
        body = image()
        self.send(body, Content_Length=len(body) - 400)

    def chunked(self, rest: str, _):
        body = image()
        self.protocol_version = "HTTP/1.1"
        self.send(b"", Content_Length=None, Transfer_Encoding="chunked")
        for part in (body[:100], body[100:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def declares_much(self, *_):
        self.send(image(), Content_Length=10**12)

    def sends_much(self, *_):
        self.send(bytes(3 * 2**20), Content_Length=None)

    def bomb(self, *_):
        # A few hundred bytes that decode to 10,000 x 10,000 pixels.
        file = io.BytesIO()
        Image.new("1", (10_000, 10_000)).save(file, "PNG")
        self.send(file.getvalue())

    def slow(self, *_):
        self.send(b"", Content_Length=1000)
        for _ in range(50):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def silent(self, *_):
        time.sleep(1)

    def to(self, rest: str, _):
        self.send(b"", 302, Location=f"/{rest}")

    def loop(self, *_):
        self.send(b"", 301, Location="/loop")

    def to_file(self, *_):
        self.send(b"", 302, Location="file:///etc/hostname")

    def to_letters(self, *_):
        self.send(b"", 302, Location="/ok/å b".encode().decode("latin-1"))


@pytest.fixture(scope="module")
def shared_server():
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(shared_server, monkeypatch):
    monkeypatch.setattr(fetch, "FIRST_WAIT_SECONDS", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    shared_server.asked.clear()
    shared_server.seen.clear()
    return shared_server


@pytest.fixture
def fetch_items(server, tmp_path):
    """Return a function that fetches items from addresses or paths of the server, and returns the report by item."""

    def fetch_addresses(links: dict[str, str | list[str]], limits: Limits = QUICK) -> dict[str, ReportLine]:
        table = tmp_path / "images.tsv"
        rows = [(item, url) for item, urls in links.items() for url in ([urls] if isinstance(urls, str) else urls)]
        text = "".join(f"{item}\t{url if ':' in url else server(url)}\n" for item, url in rows)
        table.write_text(f"item_id\turl\n{text}", encoding="utf-8")
        try:
            fetch_images(table, tmp_path / "images", limits)
            failed = False
        except FetchProblems as problems:
            failed = True
            assert problems.exit_status == 1
        lines = read_report(tmp_path / "images")
        assert failed == any(line.status == "failed" for line in lines.values())
        there = {path.name for path in (tmp_path / "images").iterdir()}
        assert there >= {line.file for line in lines.values() if line.file}
        assert not any(name.endswith((".tmp", ".lock")) for name in there)
        return lines

    return fetch_addresses


def read_report(folder: Path) -> dict[str, ReportLine]:
    first, *rows = (folder / "fetch_report.tsv").read_text(encoding="utf-8").splitlines()
    assert first.split("\t") == ["item_id", "url", "status", "reason", "file", "bytes"]
    return {line.item: line for line in (ReportLine(*row.split("\t")) for row in rows)}


OUTCOMES = {
    "ok/1": ("fetched", "", 1),
    "png": ("fetched", "", 1),
    "webp": ("fetched", "", 1),
    "chunked": ("fetched", "", 1),
    "cmyk": ("fetched", "CMYK", 1),
    "to/ok/2": ("fetched", "", 1),
    "to/to/to/to/to/ok/3": ("fetched", "", 1),
    "to_letters": ("fetched", "", 1),
    "failing": ("fetched", "", 3),
    "breaks_off": ("fetched", "", 3),
    "always_breaks_off": ("failed", "broken off: 300 of 9,000 bytes", 3),
    "cut_without_length": ("failed", "truncated", 1),
    "says_less": ("failed", "truncated", 1),
    "html_as_jpg": ("failed", "unreadable: not a JPEG, PNG or WebP image (sent as text/html)", 1),
    "lost": ("failed", "HTTP 404", 1),
    "loop": ("failed", "redirected more than 5 times", 6),
    "to_file": ("failed", "not an http or https address", 1),
    "declares_much": ("failed", "larger than 1 MiB", 1),
    "sends_much": ("failed", "larger than 1 MiB", 1),
    "bomb": ("failed", "huge: 10000 x 10000 pixels", 1),
}


def test_servers_do_what_they_do(fetch_items, server, tmp_path):
    limits = Limits(jobs=12, rate=2000, timeout=20, retries=2, max_mib=1, allow_private=True)
    lines = fetch_items({path.replace("/", "-"): path for path in OUTCOMES}, limits)
    for path, (status, reason, requests) in OUTCOMES.items():
        line = lines[path.replace("/", "-")]
        assert (line.status, line.reason.startswith(reason)) == (status, True), line
        assert bool(line.reason) == bool(reason)
        assert server.seen[path] == requests, path
        if status == "fetched":
            file = tmp_path / "images" / line.file
            assert file.stem == line.item and str(file.stat().st_size) == line.bytes
            Image.open(file).load()
    assert lines["png"].file == "png.png" and lines["webp"].file == "webp.webp" and lines["ok-1"].file == "ok-1.jpg"
    assert (tmp_path / "images" / "ok-1.jpg").read_bytes() == image(1)
    names = {path.name for path in (tmp_path / "images").iterdir()}
    assert names == {line.file for line in lines.values() if line.file} | {"fetch_report.tsv"}


def test_slow_servers_are_not_waited_for(fetch_items, server):
    lines = fetch_items(
        {"slow": "slow", "silent": "silent"}, Limits(timeout=0.3, retries=1, rate=2000, allow_private=True)
    )
    assert lines["slow"].reason.startswith("not whole after 0.3 s: ")
    assert lines["silent"].reason == "no answer in 0.3 s"
    assert server.seen == {"slow": 2, "silent": 2}


def test_a_server_is_left_alone_as_long_as_it_asks(fetch_items, server):
    lines = fetch_items({"a": "busy/429", "b": "busy/503"}, Limits(jobs=1, rate=2000, allow_private=True))
    assert {line.status for line in lines.values()} == {"fetched"}
    for path in ("busy/429", "busy/503"):
        first, second = server.times(path)
        assert second - first >= 1
    lines = fetch_items({f"i{k}": "closed_for_a_day" if k == 0 else f"ok/{k}" for k in range(40)}, Limits(**one_job()))
    failed = [line for line in lines.values() if line.status == "failed"]
    assert len(failed) == 40 and {line.reason.partition(":")[0] for line in failed} == {"asked to wait"}
    assert "86,400 s" in failed[0].reason and len(server.times("closed_for_a_day")) == 1


def one_job(**more) -> dict:
    return {"jobs": 1, "rate": 2000, "allow_private": True} | more


def test_a_date_may_say_how_long():
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < download._retry_after_seconds(later) <= 100
    assert [download._retry_after_seconds(text) for text in ("7", "soon", "", "Thu, 01 Jan 1970 00:00:00 GMT")] == [
        7,
        0,
        0,
        0,
    ]


def test_requests_to_a_host_keep_their_distance(fetch_items, server):
    fetch_items({f"i{k}": f"ok/{k}" for k in range(8)}, Limits(jobs=8, rate=40, allow_private=True))
    times = [at for _, at in server.asked]
    assert len(times) == 8 and times[-1] - times[0] >= 7 / 40 - 0.02


def test_a_host_that_is_not_there_is_given_up(fetch_items, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    asked, connect = Counter(), socket.create_connection

    def counted(address, *arguments, **options):
        asked[address[1]] += 1
        return connect(address, *arguments, **options)

    monkeypatch.setattr(socket, "create_connection", counted)
    links = {f"i{k}": f"{nobody}/{k}.jpg" for k in range(60)}
    lines = fetch_items(links | {"last": "ok/1"}, Limits(jobs=1, rate=2000, retries=1, allow_private=True))
    assert lines["last"].status == "fetched"
    assert all(lines[item].reason.startswith("no connection: ") for item in links)
    assert sum("silent to 5 items in a row" in line.reason for line in lines.values()) > 50
    assert asked[int(nobody.rpartition(":")[2])] <= 66


def test_what_is_there_and_whole_is_not_fetched_again(fetch_items, server, tmp_path):
    images = tmp_path / "images"
    links = {f"i{k}": f"ok/{k}" for k in range(6)} | {"lost": "lost"}
    fetch_items(links)
    (images / "i1.jpg").write_bytes((images / "i1.jpg").read_bytes()[:-200])
    (images / "i2.jpg").unlink()
    (images / "i3.jpg").write_bytes(b"<html>")
    (images / "i4.jpg").unlink()
    (images / "i4.png").write_bytes(image(form="PNG"))
    (images / ".i9.jpg.77.tmp").write_bytes(b"half of what a killed call fetched")
    server.asked.clear()
    lines = fetch_items(links | {"i5": "webp"})
    assert sorted(path for path, _ in server.asked) == ["lost", "ok/1", "ok/2", "ok/3", "webp"]
    assert [lines[f"i{k}"].status for k in range(6)] == ["there", "fetched", "fetched", "fetched", "there", "fetched"]
    assert sorted(path.name for path in images.glob("i*")) == [
        "i0.jpg",
        "i1.jpg",
        "i2.jpg",
        "i3.jpg",
        "i4.png",
        "i5.webp",
    ]
    # Without a report, each file is opened.
    (images / "fetch_report.tsv").unlink()
    server.asked.clear()
    assert Counter(line.status for line in fetch_items(links | {"i5": "webp"}).values()) == {"there": 6, "failed": 1}
    assert [path for path, _ in server.asked] == ["lost"]


def test_the_first_address_that_gives_an_image(fetch_items, server):
    lines = fetch_items({"a": ["lost", "html_as_jpg", "png", "ok/never"], "b": ["lost", "not an address:"]})
    assert lines["a"] == ReportLine("a", server("png"), "fetched", "", "a.png", lines["a"].bytes)
    assert lines["b"].reason == "not an http or https address"
    assert server.seen["ok/never"] == 0


ODD_IDS = [
    "../../up",
    "a/b",
    "a%2Fb",
    "50%",
    ".",
    "..",
    "x" * 300,
    "ŝipo",
    "a:b",
    "con?",
    ".jpg",
    "-",
    "a.b",
    "it\u2028em",
]


def test_any_item_id_is_a_files_name_that_the_store_finds(fetch_items, tmp_path):
    ids = [*ODD_IDS, *(f"i{k}" for k in range(3))]
    lines = fetch_items({item: f"ok/{k}" for k, item in enumerate(ids)})
    assert len(lines) == len(ids) and {line.status for line in lines.values()} == {"fetched"}
    assert {path.parent for path in tmp_path.rglob("*.jpg")} == {tmp_path / "images"}
    items = tmp_path / "items.tsv"
    items.write_text("".join(f"{item}\n" for item in ids), encoding="utf-8")
    build_store(items, tmp_path / "images", tmp_path / "s.lmdb", 8)
    ImageStore(tmp_path / "s.lmdb").check(ids)


@given(st.sets(st.text("a2F%/.\\:\0é\u2028", min_size=1), max_size=8))
def test_no_two_items_have_one_name(ids):
    assert len({stem(item) for item in ids}) == len(ids)
    assert not any(set("/\\:\0\u2028") & set(stem(item)) for item in ids)


def test_a_plain_name_is_still_found(tmp_path):
    for name in ("a%2Fb.jpg", "é.png", "50%.webp"):
        (tmp_path / name).write_bytes(b"")
    entries = Folder(tmp_path).find({"a%2Fb", "é", "50%"})
    assert {item: files[0].name for item, files in entries.items()} == {
        "a%2Fb": "a%2Fb.jpg",
        "é": "é.png",
        "50%": "50%.webp",
    }


def test_private_addresses_are_refused_unless_allowed(fetch_items, server, monkeypatch):
    here = Limits(**one_job(allow_private=False))
    lines = fetch_items({"a": "ok/1", "b": f"http://localhost:{server.server_port}/ok/1"}, here)
    assert all(line.reason.startswith("private address: 127.0.0.1; --allow_private") for line in lines.values())
    assert server.asked == []
    # Pretend that the first server is a public one.
    for item, second, status in (("a", False, "fetched"), ("b", True, "failed")):
        answers = iter([False, second])
        monkeypatch.setattr(download, "is_private", lambda peer, answers=answers: next(answers))
        line = fetch_items({item: "to/ok/7"}, Limits(**one_job()))[item]
        assert line.status == status
    assert line.reason == "private address: 127.0.0.1; a public server redirects there"
    assert server.seen["ok/7"] == 1


@pytest.mark.parametrize(
    "peer,private",
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("169.254.169.254", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("::ffff:192.168.1.1", True),
        ("0.0.0.0", True),
        ("93.184.216.34", False),
        ("2606:2800:220:1::1", False),
    ],
)
def test_what_is_private(peer, private):
    assert is_private(peer) is private


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "ftp://h/x.jpg",
        "//h/x.jpg",
        "x.jpg",
        "http://",
        "http://[::1",
        "http://a:b@h/x",
        "http://h:99999/",
    ],
)
def test_what_is_no_web_address(text):
    with pytest.raises(Failure, match="not an http or https address") as caught:
        web_address(text)
    assert not caught.value.is_temporary


def test_letters_of_addresses_are_escaped():
    wanted = "http://xn--bcher-kva.de/%C3%A5%20b%20c?q=%C3%B8&r=1"
    assert web_address(" HTTP://bücher.de/å b%20c?q=ø&r=1#part ") == wanted


@pytest.mark.parametrize(
    "text,message",
    [
        (
            "item_id\tlink\ni1\thttp://h/x\n",
            "line 1: 'item_id.*link' holds no address and does not name the columns",
        ),
        ("item_id\turl\ni1\thttp://h/x\ni2\n", "line 3: 'i2' is not item_id<TAB>url"),
        ("item_id\turl\ni 1\thttp://h/x\n", "line 2: 'i 1"),
        ("item_id\turl\n", "has a header and no links"),
        ("", "the links file is empty"),
    ],
)
def test_tables_of_links_that_are_none(tmp_path, text, message):
    (tmp_path / "images.tsv").write_text(text)
    with pytest.raises(TransrecError, match=message):
        fetch_images(tmp_path / "images.tsv", tmp_path / "images", QUICK)
    assert not (tmp_path / "images").exists()


def test_forms_of_the_table(tmp_path):
    table = tmp_path / "images.tsv"
    table.write_bytes(b"\xef\xbb\xbfitem_id:token\ttitle\turl:token\r\n007\tA\thttp://h/1\r\n007\tA\thttp://h/2\r\n")
    assert read_links(table) == {"007": ["http://h/1", "http://h/2"]}
    table.write_text("i1\thttp://h/1\ni2\thttp://h/2\ni1\thttp://h/1\n")
    assert read_links(table) == {"i1": ["http://h/1"], "i2": ["http://h/2"]}


@pytest.mark.parametrize("value", [{"jobs": 0}, {"rate": 0}, {"rate": float("nan")}, {"retries": -1}, {"timeout": -1}])
def test_limits_that_are_none(value):
    with pytest.raises(TransrecError, match=f"--{next(iter(value))} .*: must be "):
        Limits(**value)


def test_the_script_stopped_and_given_again(server, tmp_path, monkeypatch, capfd):
    table, out = tmp_path / "images.tsv", tmp_path / "images"
    table.write_text("item_id\turl\n" + "".join(f"i{k}\t{server(f'ok/{k}')}\n" for k in range(40)))
    words = ["--links", table, "--out", out, "--jobs", "2", "--rate", "2000", "--allow-private"]
    monkeypatch.setattr(sys, "argv", ["fetch_images.py", *map(str, words)])

    def script() -> tuple[int, str, str]:
        try:
            runpy.run_path(str(REPOSITORY / "Dataset" / "fetch_images.py"), run_name="__main__")
            status = 0
        except SystemExit as exit_:
            status = exit_.code
        output = capfd.readouterr()
        return status, output.out, output.err.splitlines()[-1]

    save, saved = fetch._Fetch._save, []

    def stop_at_ten(self, link, picture):
        if len(saved) == 10:
            raise Interrupted(signal.SIGINT)
        saved.append(link.item)
        save(self, link, picture)

    with monkeypatch.context() as patched:
        patched.setattr(fetch._Fetch, "_save", stop_at_ten)
        status, _, last = script()
    assert (status, last) == (130, "stopped by SIGINT: 10 of 40 images are kept, the same command continues")
    done = [f"ok/{image.stem[1:]}" for image in out.glob("*.jpg")]
    assert len(read_report(out)) == len(done) == 10
    server.asked.clear()
    status, output, _ = script()
    first, last = output.splitlines()
    # The number of requests is not compared: the server may read the last request of the first call only now.
    assert status == 0 and {path for path, _ in server.asked} == {f"ok/{k}" for k in range(40)} - set(done)
    assert first == f"{table}: 30 images to fetch from 127.0.0.1:{server.server_port} 30, 10 are there"
    assert last == f"{out}: 30 images fetched, 10 were there, 0 failed"
    table.write_text(f"item_id\turl\ni1\t{server('ok/1')}\nlost\t{server('lost')}\n")
    status, output, last = script()
    assert status == 1 and last == (
        f"error: {out}: 1 of 2 items have no image (1 HTTP 404), listed in {out}/fetch_report.tsv; the same command "
        f"tries them again, and build_lmdb.py --allow_missing does without them"
    )


def test_two_calls_do_not_share_a_folder(server, tmp_path):
    (tmp_path / "images.tsv").write_text(f"a\t{server('ok/1')}\n")
    lock = fetch.Lock((out := tmp_path / "images").mkdir() or out / ".fetch.lock")
    with pytest.raises(TransrecError, match="another process is fetching"):
        fetch_images(tmp_path / "images.tsv", out, QUICK)
    lock.close()
    assert len(fetch_images(tmp_path / "images.tsv", out, QUICK)) == 1
