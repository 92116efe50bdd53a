"""Hostile inputs: special files, files with false sizes, and files that would run code or control a terminal.

`cases()` lists them. A case spoils its own copy of a small valid set of inputs and names the script to run on that
copy. The script must end within seconds and bounded memory, with the case's exit status and one line `error: ...` that
contains no control character:

    good = make_good(folder)                          # once; a dataset, backbones and a finished run
    for case in cases():
        arguments = case.prepare(empty_folder, good)  # writes only below empty_folder, never changes the good inputs
        outcome = run_here(case.script, arguments)
        assert complaint(case, outcome) is None, complaint(case, outcome)

A separate process ([sys.executable, REPOSITORY / case.script, *arguments]) works too: its exit status, output and
errors make an Outcome. This module needs no test framework.
"""

import contextlib
import io
import json
import os
import pickle
import re
import runpy
import shutil
import signal
import socket
import struct
import sys
import time
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb
import torch
from PIL import Image

from transrec.data.demo import Domain, make_domain_with_store, make_image_backbone, make_text_backbone
from transrec.errors import printable

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = "Downstream/Text/script/finetune.py"
IMAGE = "Downstream/CV/script/sm_vit.py"
CACHE = "scripts/cache_features.py"
CHECK = "scripts/check_dataset.py"
SPLIT = "scripts/split_users.py"
EXPORT = "scripts/export_backbone.py"
BUILD = "Dataset/build_lmdb.py"
SIZES = ["--embedding_dim", "16", "--max_seq_len", "6", "--batch_size", "16", "--epochs", "1"]
# The characters that a progress bar prints (line ends and cursor up) are left out.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SECONDS = 30
MEBIBYTES = 200


@dataclass(frozen=True)
class Good:
    """Valid inputs, which cases copy and never change.

    Attributes:
        dataset: folder with dataset.json, users.tsv, items.tsv, images/ID.png and images.lmdb.
        text_encoder, image_encoder: backbone folders.
        run: folder of a finished run of the script TEXT.
        states: name of the file of hidden states that `state_flags` request.
    """

    dataset: Path
    text_encoder: Path
    image_encoder: Path
    run: Path
    states: str = ""


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: unique among all cases.
        script: script to run, a path in the repository.
        expected_text: text that the line of error contains; for a script that ends well, text of a line of warning.
        prepare: called with an empty folder for the case and the good inputs, returns the script's arguments.
        status: expected exit status; build_lmdb.py ends with 1 if there are images that cannot be used.
    """

    name: str
    script: str
    expected_text: str
    prepare: Callable[[Path, Good], list[str]]
    status: int = 2


@dataclass(frozen=True)
class Outcome:
    """How a script ended: exit status, output, seconds and memory.

    `mebibytes`: increase in memory; 0 if the system does not report it.
    """

    status: int
    out: str
    err: str
    seconds: float = 0.0
    mebibytes: float = 0.0


def complaint(case: Case, outcome: Outcome) -> str | None:
    """Return what is wrong with how a case's script ended, or None if nothing is."""
    kind = "error: " if case.status else "warning: "
    lines = [line for line in outcome.err.splitlines() if line.startswith(kind)]
    if outcome.status != case.status:
        return f"{case.name}: status {outcome.status} instead of {case.status}\n{outcome.err}"
    # If the script continues after a warning, it may show a progress bar.
    if "Traceback" in outcome.err or len(lines) != 1 or (case.status and not outcome.err.endswith(f"{lines[0]}\n")):
        return f"{case.name}: not one line of {kind.strip(': ')}\n{outcome.err}"
    if case.expected_text not in lines[0]:
        return f"{case.name}: does not say {case.expected_text!r}\n{lines[0]}"
    if control := CONTROL.search((outcome.out + outcome.err).replace("\x1b[A", "")):
        return f"{case.name}: the control character {control[0]!r} was printed"
    if outcome.seconds > SECONDS or outcome.mebibytes > MEBIBYTES:
        return f"{case.name}: took {outcome.seconds:.1f} s and {outcome.mebibytes:,.0f} MiB"
    return None


def run_here(script: str, arguments: list[str], seconds: int = SECONDS) -> Outcome:
    """Run a script in this process as if from its command line, and stop it after `seconds`."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    argv, environment, search = sys.argv, dict(os.environ), list(sys.path)
    before = _peak_mebibytes(reset=True)
    started = time.monotonic()
    previous = signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(seconds)
    try:
        sys.argv = [str(REPOSITORY / script), *arguments]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:
        status = 1
        err.write(f"Traceback: {type(error).__name__}: {error}\n")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        sys.argv, sys.path[:] = argv, search
        os.environ.clear()
        os.environ.update(environment)
    spent = time.monotonic() - started
    return Outcome(status, out.getvalue(), err.getvalue(), spent, _peak_mebibytes() - before)


class TooSlow(BaseException):
    """The script did not end in time."""


def _too_slow(number, frame):
    raise TooSlow("did not end in time")


def _peak_mebibytes(reset: bool = False) -> float:
    """Return the peak resident memory of this process, after resetting it if `reset`."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(match[1]) / 1024
    except OSError:
        return 0.0


def make_good(folder: Path) -> Good:
    """Make the valid inputs below `folder`."""
    good = Good(folder / "small", folder / "bert", folder / "vit", folder / "run")
    make_domain_with_store(good.dataset, Domain("small", users=20, items=150, longest=8, seed=3))
    make_text_backbone(good.text_encoder, hidden_size=16, layers=1)
    make_image_backbone(good.image_encoder, hidden_size=16, layers=1)
    done = run_here(TEXT, [*text_flags(folder, good)[:-1], str(good.run)], seconds=300)
    if done.status:
        raise RuntimeError(done.err)
    done = run_here(CACHE, state_flags(folder / "states", good), seconds=300)
    if done.status:
        raise RuntimeError(done.err)
    return replace(good, states=next((folder / "states").glob("states-text-*")).name)


def text_flags(folder: Path, good: Good, dataset: Path | None = None, encoder: Path | None = None) -> list[str]:
    """Return the arguments of TEXT."""
    where = ["--dataset", str(dataset or good.dataset), "--text_encoder", str(encoder or good.text_encoder)]
    return [*where, *SIZES, "--title_tokens", "10", "--device", "cpu", "--output", str(folder / "out")]


def state_flags(folder: Path, good: Good) -> list[str]:
    """Return the arguments of CACHE, which keeps the hidden states in the folder."""
    layers = ["--item_tower", "text", "--text_layers", "0", "--state_cache", str(folder)]
    return [*text_flags(folder, good), *layers]


def image_flags(folder: Path, good: Good, dataset: Path | None = None, encoder: Path | None = None) -> list[str]:
    """Return the arguments of IMAGE."""
    where = ["--dataset", str(dataset or good.dataset), "--image_encoder", str(encoder or good.image_encoder)]
    return [*where, *SIZES, "--image_workers", "0", "--device", "cpu", "--output", str(folder / "out")]


def build_flags(folder: Path, good: Good, images: Path | None = None, items: Path | None = None) -> list[str]:
    """Return the arguments of BUILD."""
    where = ["--items", str(items or good.dataset / "items.tsv"), "--images", str(images or good.dataset / "images")]
    return [*where, "--size", "32", "--workers", "1", "--out", str(folder / "out.lmdb")]


Spoil = Callable[[Path], Any]


def in_dataset(name: str, expected_text: str, spoil: Spoil, script: str = TEXT) -> Case:
    """Return a case in which `spoil` changes a copy of the dataset folder, without the folder of images."""

    def prepare(folder: Path, good: Good) -> list[str]:
        dataset = shutil.copytree(good.dataset, folder / "set", ignore=shutil.ignore_patterns("images"))
        # `spoil` may rename the folder, to test how messages show names.
        dataset = spoil(dataset) or dataset
        flags = {TEXT: text_flags, IMAGE: image_flags}
        if script in flags:
            return flags[script](folder, good, dataset)
        if script == CHECK:
            return [str(dataset), "--out", str(folder)]
        return ["--dataset", str(dataset), "--out", str(folder / "halves")]

    return Case(name, script, expected_text, prepare)


def in_text_encoder(name: str, expected_text: str, spoil: Spoil) -> Case:
    """Return a case in which `spoil` changes a copy of the text backbone's folder."""

    def prepare(folder: Path, good: Good) -> list[str]:
        spoil(encoder := shutil.copytree(good.text_encoder, folder / "bert"))
        return text_flags(folder, good, encoder=encoder)

    return Case(name, TEXT, expected_text, prepare)


def in_image_encoder(name: str, expected_text: str, spoil: Spoil) -> Case:
    """Return a case in which `spoil` changes a copy of the image backbone's folder."""

    def prepare(folder: Path, good: Good) -> list[str]:
        spoil(encoder := shutil.copytree(good.image_encoder, folder / "vit"))
        return image_flags(folder, good, encoder=encoder)

    return Case(name, IMAGE, expected_text, prepare)


def as_checkpoint(name: str, expected_text: str, make: Spoil, suffix: str) -> Case:
    """Return a case in which `make` makes the file that --checkpoint names."""

    def prepare(folder: Path, good: Good) -> list[str]:
        make(path := folder / f"given{suffix}")
        return [*text_flags(folder, good), "--checkpoint", str(path)]

    return Case(name, TEXT, expected_text, prepare)


def in_run(name: str, expected_text: str, spoil: Spoil, script: str = TEXT) -> Case:
    """Return a case in which `spoil` changes a copy of the run's folder, to be resumed or exported."""

    def prepare(folder: Path, good: Good) -> list[str]:
        spoil(run := shutil.copytree(good.run, folder / "run"))
        if script == EXPORT:
            return ["--run", str(run), "--out", str(folder / "out")]
        return ["--resume", str(run), "--epochs", "2"]

    return Case(name, script, expected_text, prepare)


def in_state_cache(name: str, expected_text: str, make: Spoil, status: int = 2) -> Case:
    """Return a case in which `make` makes the file of hidden states that cached IISAN looks for."""

    def prepare(folder: Path, good: Good) -> list[str]:
        make(folder / good.states)
        return state_flags(folder, good)

    return Case(name, CACHE, expected_text, prepare, status)


def in_build(name: str, expected_text: str, spoil: Spoil, *flags: str, status: int = 2, images: str = "images") -> Case:
    """Return a case in which `spoil` changes a folder with items.tsv (items A and B) and images/ (an image of B only).

    `images`: path in the folder for --images, or for --import_original if it ends in .lmdb.
    """

    def prepare(folder: Path, good: Good) -> list[str]:
        (folder / "images").mkdir()
        (folder / "items.tsv").write_text("A\tfirst\nB\tsecond\n")
        shutil.copy(next((good.dataset / "images").iterdir()), folder / "images" / "B.png")
        spoil(folder)
        source = "--import_original" if images.endswith(".lmdb") else "--images"
        where = ["--items", str(folder / "items.tsv"), source, str(folder / images), "--out", str(folder / "out.lmdb")]
        return [*where, "--size", "32", "--workers", "1", *flags]

    return Case(name, BUILD, expected_text, prepare, status)


# Special files that replace a regular file.


def pipe(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def noise(path: Path) -> None:
    path.symlink_to("/dev/urandom")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(".", os.O_RDONLY)
        try:
            # The path of a socket must be short.
            os.chdir(path.parent)
            listener.bind(path.name)
        finally:
            os.fchdir(here)
            os.close(here)


def self_link(path: Path) -> None:
    path.symlink_to(path.name)


def folder_instead(path: Path) -> None:
    path.mkdir()


ENDLESS = {"a pipe": pipe, "endless zeros": zeros, "endless noise": noise, "a socket": unix_socket}
SPECIAL_FILES = ENDLESS | {"a link to itself": self_link, "a folder": folder_instead}
REFUSALS = {
    "a pipe": "is a pipe, and only regular files are read",
    "endless zeros": "is a device, and only regular files are read",
    "endless noise": "is a device, and only regular files are read",
    "a socket": "is a socket, and only regular files are read",
    "a link to itself": "",
    "a folder": "is a folder, and only regular files are read",
}


def instead_of(name: str, make: Spoil) -> Spoil:
    """Return a function that replaces a file of a folder by `make`."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def special_files() -> list[Case]:
    """Return cases in which each file that a script reads is replaced by something that is not a regular file."""
    collected = []
    for kind, make in SPECIAL_FILES.items():
        for name in ("users.tsv", "items.tsv", "dataset.json"):
            collected.append(in_dataset(f"{name} is {kind}", f"{name}: {REFUSALS[kind]}", instead_of(name, make)))
        collected.append(
            in_dataset(
                f"image store is {kind}",
                f"images.lmdb: {REFUSALS[kind] if kind != 'a folder' else 'cannot read it'}",
                instead_of("images.lmdb", make),
                IMAGE,
            )
        )
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            collected.append(
                in_text_encoder(
                    f"{name} of a text encoder is {kind}",
                    f"{REFUSALS[kind] if make in ENDLESS.values() else 'bert'}",
                    instead_of(name, make),
                )
            )
        refusal = REFUSALS[kind] if kind != "a folder" else "holds no checkpoints/best.safetensors"
        collected.append(as_checkpoint(f"checkpoint .pt is {kind}", f"given.pt: {refusal}", make, ".pt"))
        collected.append(in_run(f"options.json is {kind}", f"{REFUSALS[kind]}", instead_of("options.json", make)))
        collected.append(
            in_build(f"items file of a store is {kind}", f"items.tsv: {REFUSALS[kind]}", instead_of("items.tsv", make))
        )
        collected.append(
            in_build(
                f"imported LMDB is {kind}",
                f"old.lmdb: {REFUSALS[kind] if kind != 'a folder' else 'cannot read it'}",
                instead_of("old.lmdb", make),
                images="old.lmdb",
            )
        )
    for kind, make in ENDLESS.items():
        collected.append(
            in_image_encoder(
                f"preprocessor is {kind}",
                f"preprocessor_config.json: {REFUSALS[kind]}",
                instead_of("preprocessor_config.json", make),
            )
        )
        collected.append(
            as_checkpoint(
                f"checkpoint .safetensors is {kind}", f"given.safetensors: {REFUSALS[kind]}", make, ".safetensors"
            )
        )
        collected.append(
            in_run(
                f"last state is {kind}",
                f"last.safetensors: {REFUSALS[kind]}",
                instead_of("checkpoints/last.safetensors", make),
            )
        )
        collected.append(
            in_run(
                f"best checkpoint is {kind}",
                f"best.safetensors: {REFUSALS[kind]}",
                instead_of("checkpoints/best.safetensors", make),
                EXPORT,
            )
        )
        collected.append(in_run(f"log is {kind}", f"log.txt: {REFUSALS[kind]}", instead_of("log.txt", make)))
        collected.append(
            in_build(f"zip is {kind}", f"a.zip: {REFUSALS[kind]}", instead_of("a.zip", make), images="a.zip")
        )
        collected.append(in_build(f"image is {kind}", "1 unreadable", instead_of("images/A.jpg", make), status=1))
        collected.append(
            in_build(f"store to replace is {kind}", f"out.lmdb: {REFUSALS[kind]}", instead_of("out.lmdb", make))
        )
        collected.append(in_state_cache(f"hidden states are {kind}", f".safetensors: {REFUSALS[kind]}", make))
    collected.append(
        in_dataset("users of a split are a pipe", "users.tsv: is a pipe", instead_of("users.tsv", pipe), SPLIT)
    )
    collected.append(
        in_dataset("items to check are endless noise", "items.tsv: is a device", instead_of("items.tsv", noise), CHECK)
    )
    return collected


# False or absurd sizes.


def write_text(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass") and None


def edit_json(name: str, **values: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return spoil


def all_zeros(name: str, size: int) -> Spoil:
    """Return a function that writes a sparse file of `size` zero bytes, which takes no disk space."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return spoil


def long_line(name: str, start: str) -> Spoil:
    """Return a function that appends a last line of 100 MB to a file."""

    def spoil(folder: Path) -> None:
        with open(folder / name, "a") as file:
            file.write(start)
            for _ in range(100):
                file.write("S00001 " * 150_000)

    return spoil


NESTED = '{"a": ' + "[" * 200_000


def tensors(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    """Return a safetensors file with this header, which claims the given length."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + body


def described_as(text: str) -> bytes:
    """Return a safetensors file with a checkpoint's description."""
    header = {"__metadata__": {"transrec": text}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return tensors(json.dumps(header).encode(), body=bytes(4))


def saved(content: Any, **options: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def members(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def zipped(files: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, content)
    return file.getvalue()


BLOCK = "user_encoder.transformer_encoder.transformer_blocks"
STATE = {"user_encoder.transformer_encoder.position_embedding.weight": torch.zeros(6, 16)}


def with_pickle(data: bytes) -> bytes:
    """Return a file of torch.save whose pickle is replaced by `data`."""
    files = members(saved(STATE))
    return zipped({name: data if name.endswith("data.pkl") else content for name, content in files.items()})


def storage_that_claims(count: int) -> bytes:
    """Return a file of torch.save with a storage of fewer bytes than its tensor needs."""
    data = next(content for name, content in members(saved(STATE)).items() if name.endswith("data.pkl"))
    assert b"K\x60tq" in data
    return with_pickle(data.replace(b"K\x60tq", b"J" + count.to_bytes(4, "little") + b"tq"))


def with_declared_size(archive: bytes, size: int, everywhere: bool = True) -> bytes:
    """Return a zip whose last member claims to unpack to `size` bytes."""
    at = archive.rindex(b"PK\x01\x02")
    spoilt = bytearray(archive)
    spoilt[at + 24 : at + 28] = struct.pack("<I", size)
    if everywhere:
        local = int.from_bytes(archive[at + 42 : at + 46], "little")
        spoilt[local + 22 : local + 26] = struct.pack("<I", size)
    return bytes(spoilt)


class WritesWhenUnpickled:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "ran")


def jpeg(width: int, height: int) -> bytes:
    """Return a JPEG whose header claims width x height pixels."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    """Return a PNG whose header claims width x height pixels; its data are a megabyte of zeros for each kilobyte."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(bytes(2**20), 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + png_chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    """Return a WebP whose canvas claims width x height pixels."""
    file = io.BytesIO()
    Image.new("RGBA", (16, 16)).save(file, "WEBP", lossless=True)
    image = file.getvalue()[12:]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + (10).to_bytes(4, "little") + b"\x10\0\0\0" + size + image[image.index(b"VP8L") :]
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def write(name: str, content: bytes | Callable[[Path], bytes]) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content(folder) if callable(content) else content) and None


def with_content(content: bytes | Callable[[Path], bytes]) -> Spoil:
    return lambda path: path.write_bytes(content(path) if callable(content) else content) and None


def make_lmdb(path: Path, values: dict[bytes, bytes]) -> None:
    with (
        lmdb.open(str(path), subdir=False, lock=False, map_size=2**26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)


def store(header: Any, record: bytes) -> Spoil:
    """Return a function that replaces the image store.

    Every item of the new store has `record`; `header` is bytes, or JSON values that override those of a good header.
    """

    def spoil(folder: Path) -> None:
        ids = [line.partition("\t")[0] for line in (folder / "items.tsv").read_text().splitlines()]
        (folder / "images.lmdb").unlink()
        good = {"count": len(ids), "size": 32, "kind": "jpeg", "quality": 95, "source_hash": "0", "format": 1}
        text = header if isinstance(header, bytes) else json.dumps(good | header).encode()
        make_lmdb(folder / "images.lmdb", {b" header": text} | {item.encode(): record for item in ids})

    return spoil


def original(record: bytes) -> Spoil:
    """Return a function that makes an LMDB of the original programs in which A has that record."""

    return lambda folder: make_lmdb(folder / "old.lmdb", {b"A": record})


def false_sizes() -> list[Case]:
    """Return cases of files whose sizes are absurd or differ from what the files claim."""
    huge = 2**31 - 1
    made_again = "it is made again"
    collected = [
        in_dataset(
            "a line of 100 MB among the users",
            "users.tsv, line 21: has more than 16,777,216 bytes",
            long_line("users.tsv", "u\t"),
        ),
        in_dataset(
            "a line of 100 MB among the items",
            "items.tsv, line 151: has more than 16,777,216 bytes",
            long_line("items.tsv", "i\t"),
            CHECK,
        ),
        in_dataset(
            "users that are a terabyte of zeros", "users.tsv, line 1: has more than", all_zeros("users.tsv", 2**40)
        ),
        in_dataset(
            "items that are a terabyte of zeros", "items.tsv, line 1: has more than", all_zeros("items.tsv", 2**40)
        ),
        in_dataset("dataset.json of a terabyte", "dataset.json: has more than", all_zeros("dataset.json", 2**40)),
        in_dataset("dataset.json nested deeply", "dataset.json: not JSON like", write_text("dataset.json", NESTED)),
        in_dataset("dataset.json that is a list", "dataset.json: not JSON like", write_text("dataset.json", "[]")),
        in_dataset(
            "dataset.json naming no path", "not a path (embedded null byte)", edit_json("dataset.json", users="a\0b")
        ),
        in_dataset("dataset.json naming half a letter", "not a path", edit_json("dataset.json", items="\ud800")),
        in_dataset(
            "dataset.json naming a device", "/dev/zero: is a device", edit_json("dataset.json", users="/dev/zero")
        ),
        in_run("options.json of a terabyte", "options.json: has more than", all_zeros("options.json", 2**40)),
        in_run(
            "options.json nested deeply",
            "options.json: not the options of a run (nested too deeply)",
            write_text("options.json", NESTED),
        ),
        in_run(
            "options.json that is a list", "options.json: not the options of a run", write_text("options.json", "[1]")
        ),
        in_text_encoder("config.json of a terabyte", "config.json: has more than", all_zeros("config.json", 2**40)),
        in_text_encoder("config.json nested deeply", "recursion", write_text("config.json", NESTED)),
        in_text_encoder(
            "config.json that is a list",
            "bert: holds no tokenizer that can be loaded",
            write_text("config.json", "[1]"),
        ),
        in_text_encoder("tokenizer.json nested deeply", "recursion", write_text("tokenizer.json", NESTED)),
        in_text_encoder(
            "tokenizer_config.json nested deeply", "recursion", write_text("tokenizer_config.json", NESTED)
        ),
        in_image_encoder(
            "preprocessor nested deeply",
            "preprocessor_config.json: not a JSON object",
            write_text("preprocessor_config.json", NESTED),
        ),
        in_text_encoder(
            "config.json of a billion layers",
            "config.json asks for 1,000,000,000 layers",
            edit_json("config.json", num_hidden_layers=10**9),
        ),
        in_text_encoder(
            "config.json of a trillion positions",
            "bert: holds no text encoder that can be loaded",
            edit_json("config.json", max_position_embeddings=10**12),
        ),
        in_text_encoder(
            "weights with an absurd header",
            "model.safetensors: truncated or damaged (its header would have",
            write("model.safetensors", tensors(b"{}", 2**62)),
        ),
        in_text_encoder(
            "weights with a header of 90 MB",
            "model.safetensors: truncated or damaged",
            all_zeros("model.safetensors", 2**30),
        ),
        as_checkpoint(
            "checkpoint with an absurd header",
            "given.safetensors: truncated or damaged (its header would have",
            with_content(tensors(b"{}", 2**63 + 5)),
            ".safetensors",
        ),
        as_checkpoint(
            "checkpoint with a header longer than it",
            "given.safetensors: truncated or damaged (its header would have",
            with_content(tensors(b"{}", 90_000_000)),
            ".safetensors",
        ),
        as_checkpoint(
            "checkpoint with a nested header",
            "truncated or damaged (nested too deeply)",
            with_content(tensors(NESTED.encode())),
            ".safetensors",
        ),
        as_checkpoint(
            "checkpoint with a header that is a list",
            "its header is no JSON object",
            with_content(tensors(b"[]")),
            ".safetensors",
        ),
        as_checkpoint(
            "checkpoint with a nested description",
            "its description is damaged (ValueError: nested too deeply)",
            with_content(described_as(NESTED)),
            ".safetensors",
        ),
        as_checkpoint(
            "checkpoint described by a number",
            "its description is damaged",
            with_content(described_as("7")),
            ".safetensors",
        ),
        as_checkpoint(
            ".pt of deflated gigabytes",
            "never unpickled (its members are compressed)",
            with_content(lambda _: zipped(members_of_zeros(), zipfile.ZIP_DEFLATED)),
            ".pt",
        ),
        as_checkpoint(
            ".pt with storage that is not there",
            "tensor storage 0 would be larger than what is there",
            with_content(storage_that_claims(huge)),
            ".pt",
        ),
        as_checkpoint(
            ".pt with a member larger than itself",
            "its members would be larger than the file",
            with_content(with_declared_size(saved(STATE), huge)),
            ".pt",
        ),
        as_checkpoint(
            ".pt with two pickles",
            "two members have one name",
            with_content(zipped([*members(saved(STATE)).items()] * 2)),
            ".pt",
        ),
        as_checkpoint(
            ".pt of a nested pickle",
            "no model_state_dict of tensors",
            with_content(with_pickle(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".")),
            ".pt",
        ),
        as_checkpoint(
            ".pt with an absurd array",
            "builtins.bytearray",
            with_content(with_pickle(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x0f\x85R.")),
            ".pt",
        ),
        as_checkpoint(
            ".pt with a string that is not there",
            "given.pt: damaged",
            with_content(with_pickle(b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b".")),
            ".pt",
        ),
        as_checkpoint(
            ".pt of one number expanded",
            "a is not a plain tensor",
            with_content(saved({"a": torch.zeros(1).half().expand(10**12)})),
            ".pt",
        ),
        as_checkpoint(
            ".pt of a tensor without values",
            "a is not a plain tensor",
            with_content(saved({"a": torch.zeros(10**12, device="meta")})),
            ".pt",
        ),
        as_checkpoint(
            ".pt of a sparse tensor",
            "a is not a plain tensor",
            with_content(saved({"a": torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=True)})),
            ".pt",
        ),
        as_checkpoint(
            ".pt whose keys are numbers",
            "no model_state_dict of tensors",
            with_content(saved({1: torch.zeros(1)})),
            ".pt",
        ),
        as_checkpoint(".pt without an end", "File is not a zip file", with_content(saved(STATE)[:-60]), ".pt"),
        as_checkpoint(".pt of text", "given.pt: truncated or damaged", with_content(b"hello"), ".pt"),
        as_checkpoint(
            "old .pt with storage that is not there",
            "given.pt: truncated or damaged",
            with_content(saved(STATE, _use_new_zipfile_serialization=False).replace(b"K\x60", b"J\xff\xff\xff\x7f", 1)),
            ".pt",
        ),
        # Anything that is left of a damaged file is made again.
        in_state_cache("hidden states with an absurd header", made_again, with_content(tensors(b"{}", 2**62)), 0),
        in_state_cache("hidden states with a nested header", made_again, with_content(tensors(NESTED.encode())), 0),
        in_state_cache("hidden states with a nested description", made_again, with_content(described_as(NESTED)), 0),
        in_build(
            "images of a million pixels per side",
            "--size 1000000: must be from 1 to 4096",
            lambda folder: None,
            "--size",
            "1000000",
        ),
        in_build("images of a negative size", "--size -5: must be from 1 to 4096", lambda folder: None, "--size", "-5"),
        in_build("JPEG of 65500 x 65500", "1 huge", write("images/A.jpg", jpeg(65500, 65500)), status=1),
        in_build("PNG of two billion by two billion", "1 huge", write("images/A.png", png(huge, huge)), status=1),
        in_build("PNG of 65500 x 65500", "1 huge", write("images/A.png", png(65500, 65500)), status=1),
        in_build(
            "PNG with 256 MiB of text",
            "1 unreadable",
            write("images/A.png", lambda _: png(32, 32, zipped_text())),
            status=1,
        ),
        in_build("WebP of 16383 x 16383", "1 huge", write("images/A.webp", webp(16383, 16383)), status=1),
        in_build("image of a terabyte", "1 huge", all_zeros("images/A.jpg", 2**40), status=1),
        in_build(
            "zip of a terabyte of zeros",
            "a.zip: neither a folder nor a readable zip",
            all_zeros("a.zip", 2**40),
            images="a.zip",
        ),
        in_build(
            "zip cut off",
            "a.zip: neither a folder nor a readable zip",
            write("a.zip", zipped({"A.png": bytes(99)})[:-30]),
            images="a.zip",
        ),
        in_build(
            "zip with a member of 4 GB",
            "1 huge",
            write("a.zip", lambda _: zip_with_false_size(2**32 - 2)),
            images="a.zip",
            status=1,
        ),
        in_build(
            "zip with 256 MiB that are said to be 10 bytes",
            "1 unreadable",
            write("a.zip", lambda _: zip_with_false_size(10, size=2**28)),
            images="a.zip",
            status=1,
        ),
        in_build(
            "zip with bzip2 that is said to be 10 bytes",
            "1 unreadable",
            write("a.zip", lambda _: zip_with_false_size(10, zipfile.ZIP_BZIP2)),
            images="a.zip",
            status=1,
        ),
        in_build(
            "zip with LZMA that is said to be 10 bytes",
            "1 unreadable",
            write("a.zip", lambda _: zip_with_false_size(10, zipfile.ZIP_LZMA)),
            images="a.zip",
            status=1,
        ),
        in_build(
            "record with two billion memories",
            "1 unreadable",
            original(b"\x80\x02Nr\xff\xff\xff\x7f."),
            images="old.lmdb",
            status=1,
        ),
        in_build(
            "record with a string that is not there",
            "1 unreadable",
            original(b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"."),
            images="old.lmdb",
            status=1,
        ),
        in_build(
            "record with an array that is not there",
            "1 unreadable",
            original(b"\x80\x05\x96" + (2**34).to_bytes(8, "little") + b"."),
            images="old.lmdb",
            status=1,
        ),
        in_build(
            "record of 65500 x 65500",
            "1 unreadable",
            original(pickle.dumps(OrderedDict(size=(65500, 65500)))),
            images="old.lmdb",
            status=1,
        ),
        in_build(
            "imported LMDB that is text", "old.lmdb: not an LMDB", write("old.lmdb", b"hello" * 9999), images="old.lmdb"
        ),
        in_dataset(
            "store with JPEGs of 65500 x 65500",
            "is damaged (it has 65500 x 65500 pixels)",
            store({}, jpeg(65500, 65500)),
            IMAGE,
        ),
        in_dataset(
            "store with JPEGs of one pixel more", "is damaged (it has 33 x 32 pixels)", store({}, jpeg(33, 32)), IMAGE
        ),
        in_dataset(
            "store with records that are no images", "is damaged (not a JPEG)", store({}, b"\xff\xd8\xff"), IMAGE
        ),
        in_dataset(
            "store with JPEGs behind a segment without an end",
            "is damaged (not a JPEG)",
            store({}, b"\xff\xd8\xff\xe0\xff\xff" + bytes(99)),
            IMAGE,
        ),
        in_dataset(
            "store of images of a billion pixels per side",
            "images.lmdb: the header is damaged",
            store({"size": 10**9, "kind": "raw"}, b""),
            IMAGE,
        ),
        in_dataset(
            "store of images of a size in words",
            "images.lmdb: the header is damaged",
            store({"size": "big"}, b""),
            IMAGE,
        ),
        in_dataset(
            "store of images of half a pixel",
            "images.lmdb: the header is damaged",
            store({"size": 0.5, "kind": "raw"}, b""),
            IMAGE,
        ),
        in_dataset(
            "store of a kind unknown", "images.lmdb: the header is damaged", store({"kind": ["jpeg"]}, b""), IMAGE
        ),
        in_dataset(
            "store whose grey images are numbers",
            "images.lmdb: the header is damaged",
            store({"grey": [1, {}]}, b""),
            IMAGE,
        ),
        in_dataset(
            "store with a nested header",
            "images.lmdb: the header is damaged (nested too deeply)",
            store(NESTED.encode(), b""),
            IMAGE,
        ),
        in_dataset("store whose header is a list", "images.lmdb: the header is damaged", store(b"[1]", b""), IMAGE),
        in_dataset("store of a terabyte of zeros", "images.lmdb: not an LMDB", all_zeros("images.lmdb", 2**40), IMAGE),
    ]
    return collected


def members_of_zeros() -> dict[str, bytes]:
    """Return the members of a file of torch.save; the storage is replaced by many zeros."""
    return {name: bytes(2**26) if "/data/" in name else content for name, content in members(saved(STATE)).items()}


def zip_with_false_size(declared: int, method: int = zipfile.ZIP_DEFLATED, size: int = 2**20) -> bytes:
    """Return a zip with a PNG of A that unpacks to `size` zeros and claims another size."""
    return with_declared_size(zipped({"A.png": bytes(size)}, method), declared)


def zipped_text() -> bytes:
    return png_chunk(b"zTXt", b"title\0\0" + zlib.compress(bytes(2**28), 1))


# Code.

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("ran")
Path({marker!r}).write_text("ran")
"""


def own_code() -> list[Case]:
    """Return cases of folders and files that would run their own code."""
    code = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Slow", "own.Fast"]}
    processor = {"AutoImageProcessor": "own.Processor"}

    def with_own_code(name: str, **values: Any) -> Spoil:
        def spoil(folder: Path) -> None:
            edit_json(name, **values)(folder)
            (folder / "own.py").write_text(CODE.format(marker=str(folder.parent / "ran")))

        return spoil

    def bin_instead(content: Callable[[Path], bytes]) -> Spoil:
        def spoil(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            write("pytorch_model.bin", content)(folder)

        return spoil

    return [
        in_text_encoder(
            "text encoder with code",
            "config.json asks for Python code that comes with the model",
            with_own_code("config.json", model_type="own", auto_map=code),
        ),
        in_text_encoder(
            "text encoder with code elsewhere",
            "config.json asks for Python code that comes with the model",
            with_own_code("config.json", model_type="own", auto_map={"AutoConfig": "a/b--own.C"}),
        ),
        in_image_encoder(
            "image encoder with code",
            "config.json asks for Python code that comes with the model",
            with_own_code("config.json", model_type="own", auto_map=code | processor),
        ),
        in_text_encoder(
            "text encoder with attention from a hub",
            "config.json asks for code from a hub (attn_implementation some/kernel)",
            with_own_code("config.json", attn_implementation="some/kernel"),
        ),
        in_text_encoder(
            "text encoder with experts from a hub",
            "config.json asks for code from a hub (experts_implementation some/kernel)",
            with_own_code("config.json", experts_implementation="some/kernel"),
        ),
        in_text_encoder(
            "weights that are a pickle with code",
            "pytorch_model.bin: damaged, or holds objects other than tensors",
            bin_instead(lambda folder: saved(WritesWhenUnpickled(str(folder.parent / "ran")))),
        ),
        in_text_encoder(
            "weights that are an old pickle with code",
            "bert: holds no text encoder that can be loaded (UnpicklingError",
            bin_instead(lambda folder: pickle.dumps(WritesWhenUnpickled(str(folder.parent / "ran")))),
        ),
        in_text_encoder(
            "weights with storage that is not there",
            "pytorch_model.bin: damaged",
            bin_instead(lambda _: storage_that_claims(2**31 - 1)),
        ),
        as_checkpoint(
            ".pt with code",
            "never unpickled (it asks for",
            with_content(lambda path: saved(WritesWhenUnpickled(str(path.parent / "ran")))),
            ".pt",
        ),
        as_checkpoint(
            ".pt that is a pickle with code",
            "given.pt: damaged, or holds objects other than tensors",
            with_content(lambda path: pickle.dumps(WritesWhenUnpickled(str(path.parent / "ran")))),
            ".pt",
        ),
        as_checkpoint(
            ".pth that is TorchScript",
            "given.pth: damaged",
            with_content(zipped({"a/constants.pkl": b"x", "a/data.pkl": b"x", "a/code/a.py": b"x"})),
            ".pth",
        ),
        in_build(
            "record that runs code",
            "1 unreadable",
            original(pickle.dumps(WritesWhenUnpickled("/tmp/ran"))),
            images="old.lmdb",
            status=1,
        ),
    ]


# Characters that control a terminal.

ESCAPE, BACKWARDS, BELL = "\x1b[31m\x1b]0;owned\x07", "\u202e", "\a\b"


def terminal_escapes() -> list[Case]:
    """Return cases of terminal escapes, control characters and reversals in names, ids and titles that errors quote."""
    collected = []
    for kind, text in (("escapes", ESCAPE), ("reversal", BACKWARDS), ("controls", BELL), ("C1", "\x9b31m\x9c")):
        shown = printable(text)

        def rename(folder: Path, text=text) -> Path:
            (folder / "users.tsv").write_text("u\n")
            return folder.rename(folder.with_name(f"set{text}"))

        collected += [
            in_dataset(
                f"user with {kind} twice",
                f"line 2: user '{shown}' stands",
                write_text("users.tsv", f"{text}\tS00001\n{text}\tS00002\n"),
            ),
            in_dataset(
                f"item with {kind} twice",
                f"line 2: item '{shown}x' stands",
                write_text("items.tsv", f"{text}x\ta\n{text}x\tb\n"),
            ),
            in_dataset(
                f"item with {kind} that is not listed",
                f"has item '{shown}",
                write_text("users.tsv", f"u\tS00001 {text}x\n"),
            ),
            in_dataset(
                f"line with {kind} that has no tab",
                f"'{shown}' is malformed",
                write_text("users.tsv", f"{text}\n"),
                CHECK,
            ),
            in_dataset(
                f"dataset.json naming {kind}",
                f"{shown}.tsv: cannot read",
                edit_json("dataset.json", users=f"{text}.tsv"),
            ),
            in_dataset(f"dataset folder with {kind} in its name", f"set{shown}/users.tsv", rename),
            in_text_encoder(
                f"model_type with {kind}",
                "bert: holds no text encoder",
                edit_json("config.json", model_type=f"{text}x"),
            ),
            in_run(f"method with {kind}", f"--method {shown}x: unknown", edit_json("options.json", method=f"{text}x")),
            as_checkpoint(
                f"checkpoint format with {kind}",
                f"checkpoint format {shown};",
                with_content(described_as(json.dumps({"format": text}))),
                ".safetensors",
            ),
            as_checkpoint(
                f".pt with {kind} in a tensor's name",
                f"user_encoder.blocks.0.{shown} for one",
                with_content(saved(STATE | {f"{BLOCK}.{number}.{text}": torch.zeros(1) for number in range(2)})),
                ".pt",
            ),
            in_build(
                f"item of a store with {kind} twice",
                f"item '{shown}x' stands",
                write_text("items.tsv", f"{text}x\ta\n{text}x\tb\n"),
            ),
        ]

    def rename_to_lines(folder: Path) -> Path:
        (folder / "users.tsv").write_text("u\n")
        return folder.rename(folder.with_name("set\nerror: b"))

    collected.append(
        in_dataset("dataset folder with a line end in its name", "set\\nerror: b/users.tsv, line 1", rename_to_lines)
    )
    return collected


def cases() -> list[Case]:
    """Return all cases, in a fixed order."""
    return [*special_files(), *false_sizes(), *own_code(), *terminal_escapes()]
