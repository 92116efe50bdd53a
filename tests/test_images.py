"""The image store: building and reading it, and importing the original programs' LMDBs."""

import io
import multiprocessing
import os
import pickle
import struct
import subprocess
import sys
import types
import warnings
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torch.utils.data import DataLoader

from transrec.data.images import environment, partial, pictures, sources
from transrec.data.images.build import ImageProblems, build_store
from transrec.data.images.header import HEADER_KEY, Header
from transrec.data.images.original import read_original
from transrec.data.images.store import ImageStore
from transrec.errors import TransrecError

PAGE = REPOSITORY / "Dataset" / "build_lmdb.py"


def noise(seed: int, width: int = 20, height: int = 14) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    return noise(seed, 4, 3).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, form: str = "PNG", **more) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **more)
    return file.getvalue()


def png(width: int, height: int, depth: int, pixels: np.ndarray) -> bytes:
    """Return an RGB PNG that may be 16-bit, which Pillow does not write, or claim a false size."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def write_items(folder: Path, ids) -> Path:
    items = folder / "items.tsv"
    items.write_text("".join(f"{item}\tits title\n" for item in ids), encoding="utf-8")
    return items


def write_images(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder / "images"


def records(path: Path) -> dict[bytes, bytes]:
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env, env.begin() as transaction:
        return dict(transaction.cursor())


def pixels_of(picture: Image.Image, size: int) -> torch.Tensor:
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def report_of(out: Path) -> dict[str, tuple[str, str, str]]:
    """Return outcome, reason and file by item id."""
    lines = out.with_name(f"{out.name}.report.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["item_id", "outcome", "reason", "file"]
    return {item: tuple(rest) for item, *rest in (line.split("\t") for line in lines[1:])}


@pytest.fixture
def ten(tmp_path) -> tuple[Path, Path, Path]:
    """Ten noise PNGs: the items file, the image folder, and a path for a store."""
    ids = [f"item{k}" for k in range(10)]
    images = write_images(tmp_path, {f"{item}.png": encoded(noise(k)) for k, item in enumerate(ids)})
    return write_items(tmp_path, ids), images, tmp_path / "set.lmdb"


@pytest.fixture
def store(ten) -> ImageStore:
    build_store(*ten, size=8, kind="raw")
    return ImageStore(ten[2])


IDS = [f"item{k}" for k in range(10)]


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.sampled_from(["RGB", "L"]), st.booleans())
def test_raw_is_pillows_resize_and_jpeg_is_pillows_jpeg(tmp_path_factory, width, height, size, mode, zipped):
    folder = tmp_path_factory.mktemp("round")
    plain = {f"i{k}": noise(k + width, width, height).convert(mode) for k in range(3)}
    images = write_images(folder, {f"{item}.png": encoded(picture) for item, picture in plain.items()})
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for file in images.iterdir():
                archive.write(file, f"some/folder/{file.name}")
        images = folder / "images.zip"
    items = write_items(folder, plain)
    build_store(items, images, folder / "raw", size, "raw")
    build_store(items, images, folder / "jpeg", size, "jpeg", quality=90)
    raw, jpeg = ImageStore(folder / "raw"), ImageStore(folder / "jpeg")
    assert (raw.size, raw.count, raw.kind, jpeg.kind) == (size, 3, "raw", "jpeg")
    assert raw.header.source_hash == jpeg.header.source_hash and raw.content_hash != jpeg.content_hash
    for item, picture in plain.items():
        expected = pixels_of(picture.convert("RGB"), size)
        assert torch.equal(raw.read([item])[0], expected)
        reopened = Image.open(io.BytesIO(encoded(to_picture(expected), "JPEG", quality=90, subsampling=0)))
        assert torch.equal(jpeg.read([item])[0], pixels_of(reopened, size))
    assert torch.equal(raw.read(["i2", "i0", "i2"]), torch.cat([raw.read([item]) for item in ("i2", "i0", "i2")]))
    assert raw.read([]).shape == (0, 3, size, size)


def to_picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def test_jpeg_is_close_to_what_was_given(tmp_path):
    images = write_images(tmp_path, {"a.png": encoded(smooth(1))})
    build_store(write_items(tmp_path, ["a"]), images, tmp_path / "set.lmdb", 32)
    difference = ImageStore(tmp_path / "set.lmdb").read(["a"])[0].float() - pixels_of(smooth(1), 32).float()
    assert difference.abs().mean() < 2


def test_any_extension_in_any_case_anywhere(tmp_path):
    forms = {
        "a.JPG": "JPEG",
        "x/b.jpeg": "JPEG",
        "x/y/c.Png": "PNG",
        "x/d.WEBP": "WEBP",
        "é.webp": "WEBP",
        "v1.2.png": "PNG",
    }
    files = {name: encoded(smooth(k), form) for k, (name, form) in enumerate(forms.items())}
    images = write_images(tmp_path, {**files, "notes.txt": b"", "unknown.png": b"", "a.txt": b""})
    ids = ["a", "b", "c", "d", "é", "v1.2"]
    build_store(write_items(tmp_path, ids), images, tmp_path / "set.lmdb", 16, "raw")
    read = ImageStore(tmp_path / "set.lmdb").read(ids)
    for pixels, data in zip(read, files.values(), strict=True):
        assert torch.equal(pixels, pixels_of(Image.open(io.BytesIO(data)).convert("RGB"), 16))
    assert not (tmp_path / "set.lmdb.report.tsv").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "items.tsv", "set.lmdb"]


def test_exif_orientation_and_transparency():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, _ = pictures.decode(encoded(noise(1), exif=exif), convert=False)
    np.testing.assert_array_equal(turned, np.rot90(np.asarray(noise(1)), -1))

    veiled = noise(1).copy()
    veiled.putalpha(Image.linear_gradient("L").resize(veiled.size))
    alpha = np.asarray(veiled)[..., 3:] / 255
    expected = np.asarray(noise(1)) * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(pictures.decode(encoded(veiled), convert=False)[0], expected, atol=1)
    clear = Image.new("LA", (2, 2), (10, 0))
    assert np.asarray(pictures.decode(encoded(clear), convert=False)[0]).min() == 255


def test_spawned_workers_build_the_same(ten):
    items, images, out = ten
    command = [sys.executable, PAGE, "--items", items, "--images", images, "--out", out, "--size", "8"]
    done = subprocess.run([*command, "--store", "raw", "--workers", "2"], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "10 images of 8 x 8 pixels" in done.stdout
    alone = out.with_name("alone.lmdb")
    build_store(items, images, alone, 8, "raw")
    assert records(out) == records(alone)


def test_the_builder_does_not_load_torch():
    program = "import sys, transrec.data.images.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from transrec.data.images import build, partial

build.COMMIT_IMAGES = build.CHUNK_IMAGES = 8
put = partial.Partial.put
def put_and_die(self, records):
    put(self, records)
    if len(self.stored) >= 40:
        os.kill(os.getpid(), signal.SIGKILL)
partial.Partial.put = put_and_die
build.build_store(*map(Path, sys.argv[1:]), 16, "raw", workers=2)
"""


def test_a_killed_build_continues(tmp_path, monkeypatch):
    ids = [f"i{k}" for k in range(120)]
    images = write_images(tmp_path, {f"{item}.png": encoded(noise(k)) for k, item in enumerate(ids)})
    items, out, unbroken = write_items(tmp_path, ids), tmp_path / "set.lmdb", tmp_path / "unbroken.lmdb"
    # The workers keep the output pipe open: this call returns only after they have ended too.
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, items, images, out], capture_output=True, timeout=60, cwd=REPOSITORY
    )
    assert killed.returncode == -9
    assert not out.exists() and (tmp_path / ".set.lmdb.partial").exists()

    loaded = []
    load = sources.Folder.load
    monkeypatch.setattr(sources.Folder, "load", lambda self, entry, c: loaded.append(entry) or load(self, entry, c))
    build_store(items, images, out, 16, "raw")
    assert len(loaded) == 80
    build_store(items, images, unbroken, 16, "raw")
    assert records(out) == records(unbroken)
    assert not list(tmp_path.glob(".*"))


def test_a_partial_store_follows_what_changed(ten, capsys):
    items, images, out = ten
    (images / "item3.png").rename(images / "away")
    with pytest.raises(ImageProblems, match=r"1 of 10 items.*1 missing"):
        build_store(*ten, size=8, kind="raw")
    (images / "away").rename(images / "item3.png")
    write_images(images.parent, {"item4.png": encoded(noise(99, 30, 30))})
    write_items(items.parent, IDS[1:])
    build_store(*ten, size=8, kind="raw", progress=True)
    assert "begun" not in capsys.readouterr().out
    assert set(records(out)) == {HEADER_KEY, *map(str.encode, IDS[1:])}
    read = ImageStore(out).read(["item3", "item4"])
    assert torch.equal(read, torch.stack([pixels_of(noise(3), 8), pixels_of(noise(99, 30, 30), 8)]))


def test_a_partial_store_of_other_settings_is_begun_anew(ten, capsys):
    write_items(ten[0].parent, [*IDS, "more"])
    with pytest.raises(ImageProblems):
        build_store(*ten, size=8, kind="raw")
    assert build_store(*ten, size=9, allow_missing=True, progress=True).grey == ["more"]
    assert "set.lmdb.partial: was begun with other settings, so it is started again" in capsys.readouterr().out
    assert ImageStore(ten[2]).read(IDS).shape == (10, 3, 9, 9)


def test_two_builds_of_one_store(ten):
    with partial.Partial(ten[2], {}), pytest.raises(TransrecError, match="another process is building this store"):
        build_store(*ten, size=8)


def test_a_finished_store_is_kept_unless_told(ten, capsys):
    first = build_store(*ten, size=8)
    bytes_ = ten[2].read_bytes()
    assert build_store(*ten, size=8, allow_missing=True, convert=True, progress=True) == first
    assert "already made of exactly this" in capsys.readouterr().out
    for change in ({"size": 9}, {"size": 8, "kind": "raw"}, {"size": 8, "quality": 94}):
        with pytest.raises(TransrecError, match="made of something else; give another --out, or --overwrite"):
            build_store(*ten, **change)
    assert ten[2].read_bytes() == bytes_
    old = ImageStore(ten[2])
    assert build_store(*ten, size=9, overwrite=True).size == 9
    with pytest.raises(TransrecError, match="another store has taken its place"):
        old.read(["item1"])
    assert ImageStore(ten[2]).read(["item1"]).shape == (1, 3, 9, 9)


def test_the_map_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(partial, "FIRST_MAP_BYTES", 2**15)
    ids = [f"i{k}" for k in range(60)]
    images = write_images(tmp_path, {f"{item}.png": encoded(noise(k)) for k, item in enumerate(ids)})
    build_store(write_items(tmp_path, ids), images, tmp_path / "set.lmdb", 64, "raw")
    assert (tmp_path / "set.lmdb").stat().st_size > 2**19
    store = ImageStore(tmp_path / "set.lmdb")
    assert torch.equal(store.read(ids), torch.stack([pixels_of(noise(k), 64) for k in range(60)]))


PALETTE = noise(1).quantize(8)
DEEP = np.random.default_rng(0).integers(0, 2**16, (6, 5, 3), dtype=np.uint16)
FRAMES = {"save_all": True, "append_images": [noise(2)]}
UNCOMMON = {
    "animated": {
        "png": (encoded(noise(1), **FRAMES), noise(1)),
        "webp": (encoded(noise(1), "WEBP", lossless=True, **FRAMES), noise(1)),
    },
    "CMYK": {"jpg": (data := encoded(smooth(1).convert("CMYK"), "JPEG"), Image.open(io.BytesIO(data)).convert("RGB"))},
    "palette": {"png": (encoded(PALETTE), PALETTE.convert("RGB"))},
    "16-bit": {
        "png": (
            encoded(Image.fromarray(DEEP[..., 0])),
            Image.fromarray((DEEP[..., 0] >> 8).astype("u1")).convert("RGB"),
        ),
        "PNG": (png(5, 6, 16, DEEP.astype(">u2")), Image.fromarray((DEEP >> 8).astype("u1"))),
    },
}


def broken(kind: str) -> bytes:
    whole = encoded(noise(1, 300, 300))
    match kind:
        case "truncated":
            return whole[: len(whole) // 2]
        case "unreadable":
            return encoded(noise(1), "GIF")
        case "huge":
            return png(20_000, 20_000, 8, np.asarray(noise(1)))


def test_uncommon_images_are_listed_or_converted(tmp_path):
    files, expected, reasons = {}, {}, {}
    for reason, forms in UNCOMMON.items():
        for extension, (data, picture) in forms.items():
            item = f"{reason}-{extension}"
            files[f"{item}.{extension}"], expected[item], reasons[item] = data, picture, reason
    images = write_images(tmp_path, {**files, "plain.png": encoded(noise(5))})
    items, out = write_items(tmp_path, [*expected, "plain"]), tmp_path / "set.lmdb"
    with pytest.raises(ImageProblems, match=r"6 of 7 items.* --convert to take animated, CMYK, palette, 16-bit images"):
        build_store(items, images, out, 8, "raw")
    names = {item: next(name for name in files if name.rpartition(".")[0] == item) for item in expected}
    assert report_of(out) == {item: ("problem", reasons[item], names[item]) for item in expected}
    assert not out.exists()

    with pytest.raises(ImageProblems, match="1 missing"):
        build_store(write_items(tmp_path, [*expected, "plain", "none"]), images, out, 8, "raw", convert=True)
    assert report_of(out)["none"] == ("problem", "missing", "")
    header = build_store(write_items(tmp_path, [*expected, "plain"]), images, out, 8, "raw", convert=True)
    assert header.converted == list(expected) and header.grey == []
    assert report_of(out) == {item: ("converted", reasons[item], names[item]) for item in expected}
    for pixels, picture in zip(ImageStore(out).read(list(expected)), expected.values(), strict=True):
        assert torch.equal(pixels, pixels_of(picture, 8))

    with pytest.raises(TransrecError, match="--overwrite"):
        build_store(items, images, out, 8, "raw")


def test_converted_images_of_a_partial_store_are_not_kept_without_the_flag(tmp_path):
    images = write_images(tmp_path, {"a.png": encoded(PALETTE)})
    items, out = write_items(tmp_path, ["a", "none"]), tmp_path / "set.lmdb"
    with pytest.raises(ImageProblems, match="1 of 2 items"):
        build_store(items, images, out, 8, convert=True)
    with pytest.raises(ImageProblems, match="2 of 2 items"):
        build_store(items, images, out, 8)


def test_one_percent_of_the_images_is_bad(tmp_path):
    ids = [f"i{k}" for k in range(400)]
    bad = {"i7": "truncated", "i100": "unreadable", "i301": "huge", "i399": "missing"}
    files = {f"{item}.png": encoded(noise(k, 6, 6)) for k, item in enumerate(ids) if item not in bad}
    files |= {f"{item}.png": broken(kind) for item, kind in bad.items() if kind != "missing"}
    files["sub/i50.jpg"] = encoded(noise(50), "JPEG")
    images, items, out = write_images(tmp_path, files), write_items(tmp_path, ids), tmp_path / "set.lmdb"
    command = [sys.executable, PAGE, "--items", items, "--images", images, "--out", out, "--size", "6"]
    command += ["--workers", "1", "--store", "raw"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not out.exists()
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"error: {out}: not finished, 5 of 400 items have no image that can be used (")
    listed = report_of(out)
    assert {item: reason.partition(":")[0] for item, (_, reason, _) in listed.items()} == {
        **bad,
        "i50": "several files",
    }
    assert {item: file for item, (_, _, file) in listed.items() if item != "i50"} == {
        item: "" if kind == "missing" else f"{item}.png" for item, kind in bad.items()
    }
    assert set(listed["i50"][2].split("; ")) == {"i50.png", "sub/i50.jpg"}
    assert {outcome for outcome, _, _ in listed.values()} == {"problem"}

    done = subprocess.run([*command, "--allow_missing"], capture_output=True, text=True)
    assert done.returncode == 0 and "0 converted images, and 5 made grey" in done.stdout
    assert {outcome for outcome, _, _ in report_of(out).values()} == {"grey"}
    store = ImageStore(out)
    assert store.header.grey == ["i7", "i50", "i100", "i301", "i399"]
    assert (store.read(store.header.grey) == 128).all()
    assert torch.equal(store.read(["i8"])[0], pixels_of(noise(8, 6, 6), 6))
    with pytest.raises(TransrecError, match="made of something else"):
        build_store(items, images, out, 6, "raw")


def test_jpeg_stand_ins_are_grey_too(ten):
    write_items(ten[0].parent, ["none"])
    build_store(*ten, size=17, allow_missing=True)
    assert (ImageStore(ten[2]).read(["none"]) == 128).all()


def test_huge_images_are_not_decoded(monkeypatch):
    files = [png(side, side, 8, np.asarray(noise(1))) for side in (9_000, 30_000)]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for data in files:
        with warnings.catch_warnings(), pytest.raises(pictures.Problem, match="huge: "):
            warnings.simplefilter("error")
            pictures.decode(data, convert=True)


class Reads(torch.utils.data.Dataset):
    def __init__(self, store: ImageStore):
        self.store = store

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.store.read([f"item{index}"])[0]


def has_nothing_open(worker: int) -> None:
    assert not environment._environments


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_forked_workers_open_their_own_handle(ten, kind):
    build_store(*ten, size=8, kind=kind)
    store = ImageStore(ten[2])
    expected = store.read(IDS)
    assert environment._environments, "before the fork"
    loader = DataLoader(Reads(store), 3, num_workers=4, multiprocessing_context="fork", worker_init_fn=has_nothing_open)
    for _ in range(2):
        assert torch.equal(torch.cat(list(loader)), expected)
        assert torch.equal(store.read(IDS), expected)


def test_two_processes_read_at_once(store):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()

    def read() -> None:
        barrier.wait()
        queue.put([store.read(IDS).numpy() for _ in range(50)])

    processes = [context.Process(target=read) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        for pixels in queue.get(timeout=30):
            np.testing.assert_array_equal(pixels, store.read(IDS))
    for process in processes:
        process.join()


def test_a_store_travels_as_its_path(store):
    sent = pickle.dumps(store)
    assert len(sent) < 500
    received = pickle.loads(sent)
    assert received.header == store.header and torch.equal(received.read(IDS), store.read(IDS))


def test_check_names_what_is_lacking(store):
    store.check(IDS)
    with pytest.raises(
        TransrecError, match=r"no image of 8 of 18 items \(x0, x1, x2, x3, x4, \.\.\.\); make the store"
    ):
        store.check([*IDS, *(f"x{k}" for k in range(8))])
    with pytest.raises(TransrecError, match=r"no image of 1 of 2 items \(x\)"):
        store.read(["item1", "x"])


def rewrite(path: Path, changes: dict[bytes, bytes]) -> ImageStore:
    with lmdb.open(str(path), subdir=False, lock=False, map_size=2**24) as env, env.begin(write=True) as transaction:
        for key, value in changes.items():
            transaction.put(key, value)
    return ImageStore(path)


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_damaged_records(ten, kind):
    build_store(*ten, size=8, kind=kind)
    whole = records(ten[2])[b"item1"]
    larger = encoded(noise(1, 9, 9), "JPEG")
    store = rewrite(ten[2], {b"item2": b"garbage", b"item3": whole[: len(whole) // 2], b"item4": larger})
    for item in ("item2", "item3", "item4"):
        with pytest.raises(TransrecError, match=f"the image of {item} is damaged .*; make the store again"):
            store.read(["item1", item])
    store.read(["item1"])


def test_what_is_not_a_store(ten, tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(TransrecError) as error:
            ImageStore(path)
        assert str(error.value).startswith(f"{path}: ")
        return str(error.value)

    assert "cannot read it as an image store (No such file or directory)" in message(tmp_path / "none.lmdb")
    for name, content in (("text", b"a text" * 9999), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        assert "not an LMDB" in message(tmp_path / name)

    build_store(*ten, size=8)
    with pytest.raises(TransrecError, match=r"not an LMDB.*or give another --out, or --overwrite"):
        build_store(*ten[:2], tmp_path / "text", size=8)
    (tmp_path / "cut").write_bytes(ten[2].read_bytes()[:-5000])
    assert "the file is cut off" in message(tmp_path / "cut")

    newer = replace(Header(1, 8, "raw", None, ""), format=99).to_bytes()
    for name, value, expected in (
        ("newer", newer, "image store of format 99, this transrec reads up to 1; update transrec"),
        ("damaged", b"{}", "the header is damaged"),
        ("other", None, "not an image store of transrec; make one with Dataset/build_lmdb.py"),
    ):
        with lmdb.open(str(tmp_path / name), subdir=False, lock=False) as env, env.begin(write=True) as transaction:
            transaction.put(HEADER_KEY if value else b"key", value or b"value")
        assert expected in message(tmp_path / name)


def test_bad_arguments(ten, tmp_path):
    items, images, out = ten
    for change, message in (
        ({"size": 0}, "--size 0: must be from 1 to 4096 pixels"),
        ({"kind": "png"}, "--store png: must be one of jpeg, raw"),
        ({"quality": 101}, "--quality 101: must be from 1 to 100"),
        ({"workers": 0}, "--workers 0: must be at least 1"),
        ({"images": tmp_path / "none"}, "none: no such file or folder; check --images"),
        ({"images": tmp_path / "none", "original": True}, "check --import_original"),
        ({"images": items}, "items.tsv: neither a folder nor a readable zip"),
        ({"out": images}, "images: is a folder, a store is one file; give another --out"),
    ):
        with pytest.raises(TransrecError, match=message):
            build_store(**{"items": items, "images": images, "out": out, "size": 8} | change)
    with pytest.raises(TransrecError, match="has 512 bytes; a store takes 511"):
        build_store(write_items(tmp_path, ["é" * 256]), images, out, 8)
    build_store(write_items(tmp_path, ["x" * 511]), images, out, 8, allow_missing=True)
    assert ImageStore(out).count == 1


def test_an_encrypted_zip_is_listed(tmp_path):
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        archive.writestr("a.png", encoded(noise(1)))
    data = bytearray((tmp_path / "i.zip").read_bytes())
    for signature, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        data[data.index(signature) + offset] |= 1
    (tmp_path / "i.zip").write_bytes(data)
    with pytest.raises(ImageProblems, match="1 unreadable"):
        build_store(write_items(tmp_path, ["a"]), tmp_path / "i.zip", tmp_path / "set.lmdb", 8)


@pytest.fixture
def record_class(monkeypatch):
    """Return a function that makes a class LMDB_Image which pickles as a class of the named module."""

    def make(name: str) -> type:
        class LMDB_Image:
            def __init__(self, pixels: np.ndarray, **more):
                self.channels = pixels.shape[2]
                self.size = pixels.shape[:2]
                self.image = pixels.tobytes()
                vars(self).update(more)

        LMDB_Image.__module__, LMDB_Image.__qualname__ = name, "LMDB_Image"
        module = types.ModuleType(name)
        module.LMDB_Image = LMDB_Image
        monkeypatch.setitem(sys.modules, name.partition(".")[0], module)
        monkeypatch.setitem(sys.modules, name, module)
        return LMDB_Image

    return make


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "module,more", [("run_lmdb", {}), ("data_utils.lmdb", {"id": "a"}), ("__main__", {"key": b"a"})]
)
def test_original_records_of_any_protocol(record_class, protocol, module, more):
    image = np.asarray(noise(3))
    value = pickle.dumps(record_class(module)(image, **more), protocol=protocol)
    np.testing.assert_array_equal(read_original(value), image)


@pytest.mark.parametrize("folder", [False, True])
def test_original_stores_pixel_for_pixel(record_class, tmp_path, folder):
    record = record_class("run_lmdb")
    images = {f"v{k}": np.asarray(noise(k, 24, 24)) for k in range(7)} | {"wide": np.asarray(noise(9, 50, 20))}
    with lmdb.open(str(tmp_path / "old"), subdir=folder, map_size=2**24) as env, env.begin(write=True) as transaction:
        for item, image in images.items():
            transaction.put(item.encode(), pickle.dumps(record(image)))
        transaction.put(b"__keys__", pickle.dumps([item.encode() for item in images]))
        transaction.put(b"__len__", pickle.dumps(len(images)))
    items, out = write_items(tmp_path, images), tmp_path / "set.lmdb"
    command = [sys.executable, PAGE, "--import_original", tmp_path / "old", "--items", items, "--out", out]
    subprocess.run([*command, "--size", "24", "--store", "raw", "--workers", "2"], check=True, capture_output=True)
    store = ImageStore(out)
    for item, pixels in zip(images, store.read(list(images)), strict=True):
        expected = images[item] if item != "wide" else np.asarray(noise(9, 50, 20).resize((24, 24), Image.BILINEAR))
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), expected)
    with lmdb.open(str(tmp_path / "old"), subdir=folder, map_size=2**24) as env, env.begin(write=True) as transaction:
        transaction.put(b"v3", pickle.dumps(record(255 - images["v3"])))
    again = subprocess.run([*command, "--size", "24", "--store", "raw"], capture_output=True, text=True)
    assert again.returncode == 2 and "there is a store made of something else" in again.stderr
    with pytest.raises(ImageProblems, match=r"1 of 2 items.*1 missing"):
        build_store(write_items(tmp_path, ["v1", "x"]), tmp_path / "old", tmp_path / "b", 24, original=True)


class Call:
    """An object that pickles as a function call."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def malicious(record: type, witness: Path) -> dict[str, bytes]:
    touch = f"touch {witness}"
    plain = record(np.zeros((1, 1, 3), np.uint8))
    nested = record(np.zeros((1, 1, 3), np.uint8), id=[{"a": Call(os.system, touch)}])
    image = record(np.zeros((1, 1, 3), np.uint8), image=Call(eval, f"open({str(witness)!r}, 'w')"))
    name = b"clib\nLMDB_Image\n"
    return {
        "reduce": pickle.dumps(Call(os.system, touch)),
        "eval": pickle.dumps(Call(eval, f"__import__('os').system({touch!r})")),
        "exec": pickle.dumps(Call(exec, f"open({str(witness)!r}, 'w')"), protocol=0),
        "in the state": pickle.dumps(nested),
        "as the image": pickle.dumps(image),
        "after a record": pickle.dumps([plain, Call(os.system, touch)]),
        "global": b"cposix\nsystem\n(V" + touch.encode() + b"\ntR.",
        "inst": b"(V" + touch.encode() + b"\niposix\nsystem\n.",
        "getattr": b"cbuiltins\ngetattr\n(clib\nLMDB_Image\nV__init__\ntR.",
        "setstate in the state": name + b"(tR(dV__setstate__\ncposix\nsystem\nsbV" + touch.encode() + b"\nb.",
        "setstate on the class": name + b"(N(dV__setstate__\ncposix\nsystem\nstbV" + touch.encode() + b"\nb.",
        "dotted": b"\x80\x04\x8c\x03lib\x8c\x1cLMDB_Image.__init__.__globals__\x93.",
        "a module's LMDB_Image by attribute": b"\x80\x04\x8c\x02os\x8c\x11LMDB_Image.system\x93.",
        "codecs": b"c_codecs\ndecode\n(Vx\nVrot13\ntR.",
        "persistent": b"Pos.system\n.",
        "extension": b"\x82\x01.",
        "nothing": b"",
        "not a pickle": b"\xff\xd8\xff\xe0 a JPEG",
        "a string": pickle.dumps("LMDB_Image"),
        "no attributes": name + b"(tR.",
        "the class itself": name + b".",
        "a function": b"c_codecs\nencode\n.",
    }


def test_malicious_pickles_run_nothing(record_class, tmp_path):
    witness = tmp_path / "witness"
    good = pickle.dumps(record_class("lib")(np.asarray(noise(1))))
    for name, value in malicious(record_class("lib"), witness).items():
        with pytest.raises(TransrecError, match="not an image record"):
            read_original(value)
            pytest.fail(name)
        assert not witness.exists(), name
        np.testing.assert_array_equal(read_original(good), np.asarray(noise(1)), err_msg=name)


def test_a_pickle_cannot_prepare_the_next(record_class):
    """Attributes that a pickle sets on the objects it names do not outlive that pickle."""
    good = pickle.dumps(record_class("lib")(np.asarray(noise(1))), protocol=1)
    name, rebuild = b"clib\nLMDB_Image\n", b"ccopy_reg\n_reconstructor\n"
    for target in (name, rebuild, b"c_codecs\nencode\n"):
        for attribute in (b"__setstate__", b"__new__", b"__init__", b"__dict__", b"__getattribute__", b"__code__"):
            for value in (rebuild, b"}", b"Vx\n"):
                with pytest.raises(TransrecError):
                    read_original(target + b"(N(dV" + attribute + b"\n" + value + b"stb.")
                np.testing.assert_array_equal(read_original(good), np.asarray(noise(1)))


def test_original_records_that_do_not_add_up(record_class):
    record = record_class("lib")
    image = np.asarray(noise(1))
    for change in (
        {"channels": 4},
        {"size": (14, 21)},
        {"size": (-14, -20)},
        {"size": (14,)},
        {"size": "ab"},
        {"image": "text"},
        {"image": image.tobytes()[:-1]},
    ):
        with pytest.raises(TransrecError, match="LMDB_Image with channels 3, size"):
            read_original(pickle.dumps(record(image, **change)))


def test_bad_records_of_an_original_store_are_listed(record_class, tmp_path):
    witness = tmp_path / "witness"
    values = {
        "good": pickle.dumps(record_class("lib")(np.asarray(noise(1)))),
        "bad": malicious(record_class("lib"), witness)["reduce"],
    }
    with lmdb.open(str(tmp_path / "old"), subdir=False) as env, env.begin(write=True) as transaction:
        for item, value in values.items():
            transaction.put(item.encode(), value)
    out = tmp_path / "set.lmdb"
    with pytest.raises(ImageProblems, match="1 of 2 items"):
        build_store(write_items(tmp_path, values), tmp_path / "old", out, 8, original=True)
    ((item, (outcome, reason, _)),) = report_of(out).items()
    assert (item, outcome, reason) == ("bad", "problem", "unreadable: not an image record: it asks for posix.system")
    assert not witness.exists()
