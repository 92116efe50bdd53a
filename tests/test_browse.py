"""The pages of scripts/browse.py: users, typed histories and items of two runs, over HTTP and in a browser."""

import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from html import unescape
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import FEW_STEPS, REPOSITORY, run, run_flags
from test_statistics import Page

import transrec
from transrec.errors import TransrecError
from transrec.reports.browse import Browser
from transrec.reports.serving import Server

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & '\x1b[31m\u202e"
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def folders(domain, backbones, tmp_path_factory):
    """Folders of two runs over item IDs of a dataset with pictures, in which every fifth title is hostile."""
    place = tmp_path_factory.mktemp("browse")
    shutil.copytree(domain, place / "films", ignore=shutil.ignore_patterns(".transrec"))
    path = place / "films" / "items.tsv"
    lines = path.read_text(encoding="utf-8").splitlines()
    hostile = [f"{line.split(chr(9))[0]}\t{HOSTILE}" if at % 5 == 0 else line for at, line in enumerate(lines)]
    path.write_text("\n".join(hostile) + "\n", encoding="utf-8")
    flags = [*run_flags(place / "films", backbones), *FEW_STEPS, "--epochs", "1", "--item_tower", "id"]
    for name, seed in (("one", "0"), ("two", "1")):
        run([*flags, "--lr", "1e-2", "--seed", seed, "--output", str(place / name)], "full")
    return place / "one", place / "two"


@pytest.fixture(scope="module")
def runs(folders):
    return [transrec.load_run(folder) for folder in folders]


@pytest.fixture(scope="module")
def browser(runs):
    return Browser(runs, k=10)


@pytest.fixture(scope="module")
def hit(browser):
    """A user whose target is among the first run's ten best items, the target, and these items."""
    one = browser.first
    lists = np.concatenate([items for _, items in one.top_for_targets("test", 10)])
    wanted = one.dataset.split.test.only_last(1).flat() - 1
    target = int(np.flatnonzero((lists == wanted[:, None]).any(1))[0])
    return browser.users[int(one.dataset.split.targets("test")[0][target])], one.ids[wanted[target]], lists[target]


def test_a_user_with_the_lists_of_both_runs(browser, hit, runs):
    user, wanted, found = hit
    status, source = browser.answer(f"/user?id={user}")
    assert status == 200 and source.count('class="top"') == 2 and source.count('class="target"') == 1
    one, two = source.split('<section class="run">')[1:]
    assert re.findall(r"id=([^\"]+)\"", one) == [runs[0].ids[place] for place in found]
    (marked,) = re.findall(r"<li class=hit>.*?</li>", one)
    rank = int(re.search(r"class=rank>(\d+)<", marked)[1])
    assert f"id={wanted}" in marked and f"target at rank {rank}<" in one and "target at rank " in two
    assert "<h3>one</h3>" in one and "full over item IDs" in one and "data:image/jpeg;base64," in one
    kept = runs[0].dataset.split.history("test")
    number = browser.users.index(user)
    assert source.count("<li>", 0, source.index("<h2>Top")) == len(kept[number])


def test_nothing_of_the_dataset_is_markup(browser, runs):
    hostile = runs[0].ids[0]
    for address in (
        f"/item?id={hostile}",
        f"/history?items={hostile}&find=owned",
        "/?find=%3Cscript%3E%22",
        "/item?find=owned",
    ):
        source = browser.answer(address)[1]
        page = Page(source)
        assert "script" not in page.tags and "<img src=x" not in source and "\x1b" not in source, address
    assert "<script>document.title='owned'</script>" in Page(browser.answer(f"/item?id={hostile}")[1]).text


def test_users_items_and_histories_are_found(browser, runs):
    page = Page(browser.answer("/")[1])
    assert "60 users" in page.text and {f"/user?id={user}" for user in browser.users} <= {*page.addresses}
    user = browser.users[7]
    assert browser.find_users(user)[0] == user and browser.find_users("no such") == []
    ids = runs[0].ids
    place = browser.find_items(ids[3])[0]
    assert place == 3 and browser.find_items("  ") == [] and 0 in browser.find_items("OWNED script")
    source = browser.answer(f"/history?items={ids[3]}+{ids[8]}&find={ids[4]}")[1]
    assert f'href="/history?items={ids[3]}+{ids[8]}+{ids[4]}">add</a>' in source
    lists = source.split('<section class="run">')[1:]
    for each, of in zip(lists, runs, strict=True):
        assert re.findall(r"id=([^\"]+)\"", each) == of.recommend([ids[3], ids[8]], 10).ids


def test_neighbours_are_those_of_the_highest_cosine(browser, runs):
    one = runs[0]
    vectors = one.embed(one.ids)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[5]
    cosines[5] = -np.inf
    found = one.neighbours(one.ids[5], 4)
    assert found.ids == [one.ids[place] for place in np.argsort(-cosines, kind="stable")[:4]]
    np.testing.assert_allclose(found.scores, np.sort(cosines)[::-1][:4], rtol=1e-5)
    assert len(one.neighbours(one.ids[5], len(one.ids)).ids) == len(one.ids) - 1
    first = browser.answer(f"/item?id={one.ids[5]}")[1].split('<section class="run">')[1]
    assert re.findall(r"id=([^\"]+)\"", first)[:4] == found.ids
    with pytest.raises(TransrecError, match="--k 999: must be"):
        one.neighbours(one.ids[5], 999)


@pytest.mark.parametrize("mask", ["seen", "none", "seen_but_target"])
def test_the_list_of_one_target_is_the_one_among_all(runs, mask):
    whole = np.concatenate([items for _, items in runs[0].top_for_targets("test", 5, mask)])
    some = np.array([41, 3])
    ((_, items),) = runs[0].top_for_targets("test", 5, mask, some)
    assert np.array_equal(items, whole[some])


@pytest.mark.parametrize(
    "address,status,said",
    [
        ("/user?id=nobody", 400, "user 'nobody': the runs kept no such user"),
        ("/user?id={user}&target=2", 400, "has the targets 1 to 1"),
        ("/user", 400, "user ''"),
        ("/item?id=nothing", 400, "item 'nothing': neither"),
        ("/history?items=nothing", 400, "item 'nothing': neither"),
        ("/nowhere", 404, "/nowhere: there is no such page"),
    ],
)
def test_a_mistake_is_told_on_the_page(browser, address, status, said):
    got, source = browser.answer(address.format(user=browser.users[0]))
    assert got == status and said in Page(source).text and "<nav>" in source


def test_runs_that_do_not_stand_side_by_side(runs, folders, tmp_path):
    with pytest.raises(TransrecError, match="--run: is given 4 times; 3 runs at most"):
        Browser([*runs, *runs])
    with pytest.raises(TransrecError, match="--k 999: must be at least 1 and at most 131"):
        Browser(runs, 999)
    shutil.copytree(folders[0], tmp_path / "other")
    other = transrec.load_run(tmp_path / "other")
    whole = other.dataset
    other.__dict__["dataset"] = transrec.load_run(folders[1]).dataset
    Browser([runs[0], other])
    for change, message in (
        (lambda old: {"split": replace(old.split, test_starts=old.split.test_starts - 1)}, "the split"),
        (lambda old: {"split": replace(old.split, item_rows=old.split.item_rows[:-1])}, "what is ranked"),
        (lambda old: {"interactions": replace(old.interactions, users=old.interactions.users[:-1])}, "the dataset"),
    ):
        other.__dict__["dataset"] = replace(whole, **change(whole))
        with pytest.raises(TransrecError, match=f"other: {message} is not that of .*one; only runs"):
            Browser([runs[0], other])


@pytest.fixture
def address(browser):
    with Server("127.0.0.1", 0) as server:
        server.answer = browser.answer
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


def test_what_is_sent(address, browser):
    with urlopen(address) as sent:
        assert sent.status == 200 and sent.headers["Content-Type"] == "text/html; charset=utf-8"
        assert sent.headers["X-Content-Type-Options"] == "nosniff"
        source = sent.read().decode()
    assert (
        source == browser.answer("/")[1] and "default-src 'none'" in source and "http" not in source.split("<body>")[1]
    )
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(address, headers={"Host": "elsewhere.example:80"}))
    port = address.rstrip("/").rpartition(":")[2]
    for name in (f"localhost:{port}", "localhost", f"[::1]:{port}"):
        assert urlopen(Request(address, headers={"Host": name})).status == 200
    with pytest.raises(HTTPError, match="404"):
        urlopen(f"{address}../../etc/passwd")


def _script(monkeypatch, capfd, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["browse.py", "--device", "cpu", *words])
    capfd.readouterr()
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(REPOSITORY / "scripts" / "browse.py"), run_name="__main__")
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    return left.value.code, errors


def test_where_it_cannot_listen(folders, monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, output = _script(monkeypatch, capfd, "--run", str(folders[0]), "--port", port)
    assert status == 2 and output == f"error: --port {port}: is taken; give another, or 0 for any that is free\n"
    status, output = _script(monkeypatch, capfd, "--run", str(folders[0]), "--port", "70000")
    assert status == 2 and "--port 70000: must be from 0" in output
    status, output = _script(monkeypatch, capfd, "--run", str(folders[0]), "--host", "not a host")
    assert status == 2 and "--host not a host: is not a name or address of this computer" in output
    status, output = _script(monkeypatch, capfd, "--run", "nowhere", "--host", "0.0.0.0", "--port", "0")
    assert (
        status == 2 and "--host 0.0.0.0: anyone who can reach this computer at port" in output and "nowhere" in output
    )


def test_ctrl_c_ends_it(folders, monkeypatch, capfd):
    seen, serve = [], Server.serve_forever

    def looked_at(server) -> None:
        def look() -> None:
            seen.append(urlopen(server.url).read().decode())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=look).start()
        serve(server)

    monkeypatch.setattr(Server, "serve_forever", looked_at)
    status, output = _script(monkeypatch, capfd, "--run", str(folders[0]), "--run", str(folders[1]), "--port", "0")
    assert status == 130 and "Type a history" in seen[0]
    assert output.splitlines()[-1] == "stopped by SIGINT: nothing is lost, the same command starts again"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser(address, hit, runs, tmp_path):
    """A user is searched and the resulting link followed; hostile titles do nothing, and nothing is fetched."""
    user, wanted, found = hit

    def see(path: str) -> str:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
        # Nothing outside this computer can be reached.
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [CHROMIUM, *flags, "--dump-dom", address.rstrip("/") + path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    link = unescape(re.search(rf'<a href="([^"]*)">{user}</a>', see(f"/?find={user}"))[1])
    seen = see(link)
    assert "<title>films</title>" in seen and "owned" in seen and "<script" not in seen
    one = seen.split('<section class="run">')[1]
    assert re.findall(r"id=([^\"]+)\"", one) == [runs[0].ids[place] for place in found]
    (marked,) = re.findall(r'<li class="hit">.*?</li>', one)
    assert f"id={wanted}" in marked and "<strong>hit</strong>" in marked
