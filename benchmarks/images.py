"""Measure reading item images into batches uint8 [64, 3, 224, 224], and building an image store.

    python benchmarks/images.py [--images 2000] [--workers 1 2 4]
    python benchmarks/images.py --build 20000

The first command reads the same images, 500 x 400 JPEGs that compress like photos, in random order from a JPEG store, a
raw store, the image files, and an LMDB of pickled 500 x 400 arrays that are resized and normalised to fp32 on every
read. It prints images per second and MiB on disk. The second command builds a store of the given number of images with
Dataset/build_lmdb.py, and prints seconds, peak memory of all its processes, and MiB on disk.
"""

import argparse
import os
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import lmdb
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from transrec.data.images.build import build_store
from transrec.data.images.store import ImageStore
from transrec.paths import REPOSITORY

WIDTH, HEIGHT, SIZE, BATCH = 500, 400, 224, 64
PASSES = 4
MEMORY_SAMPLES_A_SECOND = 20


def picture(number: int) -> Image.Image:
    """Return a distinct image of broad shapes with fine grain, whose JPEG is about as large as that of a photo."""
    return Image.blend(noise(number, 6, 5), noise(number % 16, WIDTH // 2, HEIGHT // 2), 0.12)


@lru_cache(maxsize=64)
def noise(seed: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def generate(folder: Path, count: int) -> tuple[Path, Path]:
    """Write an items file and an image folder; return both paths."""
    images = folder / "images"
    images.mkdir()
    for number in range(count):
        picture(number).save(images / f"v{number}.jpg", quality=90)
    items = folder / "items.tsv"
    items.write_text("".join(f"v{number}\ttitle\n" for number in range(count)))
    return items, images


class LMDB_Image:
    """The record type of the original programs."""

    def __init__(self, image: np.ndarray):
        self.channels, self.size, self.image = image.shape[2], image.shape[:2], image.tobytes()


def write_original(images: Path, out: Path) -> None:
    with lmdb.open(str(out), subdir=False, map_size=2**40) as environment:
        for file in sorted(images.iterdir()):
            with environment.begin(write=True) as transaction:
                image = np.array(Image.open(file).convert("RGB"))
                transaction.put(file.stem.encode(), pickle.dumps(LMDB_Image(image)))


class Originals:
    """Reads images like the original programs: each is unpickled, resized, and normalised to fp32."""

    def __init__(self, path: Path):
        self.path, self.environment = path, None
        self.transform = transforms.Compose(
            [
                transforms.Resize((SIZE, SIZE)),
                transforms.ToTensor(),
                transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ]
        )

    def read(self, ids: list[str]) -> torch.Tensor:
        self.environment = self.environment or lmdb.open(
            str(self.path), subdir=False, readonly=True, lock=False, readahead=False, meminit=False
        )
        with self.environment.begin() as transaction:
            return torch.stack([self._image(transaction.get(item.encode())) for item in ids])

    def _image(self, value: bytes) -> torch.Tensor:
        record = pickle.loads(value)
        pixels = np.frombuffer(record.image, dtype=np.uint8).reshape(*record.size, record.channels)
        return self.transform(Image.fromarray(pixels))


class Files:
    """Reads the image files and resizes them."""

    def __init__(self, images: Path):
        self.images = images

    def read(self, ids: list[str]) -> torch.Tensor:
        pixels = np.empty((len(ids), 3, SIZE, SIZE), dtype=np.uint8)
        for row, item in enumerate(ids):
            image = Image.open(self.images / f"{item}.jpg").convert("RGB")
            pixels[row] = np.asarray(image.resize((SIZE, SIZE), Image.BILINEAR)).transpose(2, 0, 1)
        return torch.from_numpy(pixels)


class Batches(Dataset):
    def __init__(self, read: Callable[[list[str]], torch.Tensor], ids: list[str]):
        self.read, self.ids = read, ids

    def __len__(self) -> int:
        return len(self.ids) // BATCH

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.ids[index * BATCH : (index + 1) * BATCH])


def images_per_second(read: Callable[[list[str]], torch.Tensor], ids: list[str], workers: int) -> float:
    """Return the median rate of three passes, after a first pass that starts the workers and warms the file cache."""
    loader = DataLoader(Batches(read, ids), batch_size=None, num_workers=workers, persistent_workers=True)
    seconds = []
    for _ in range(PASSES):
        started = time.perf_counter()
        for _ in loader:
            pass
        seconds.append(time.perf_counter() - started)
    return len(loader) * BATCH / statistics.median(seconds[1:])


def mebibytes(path: Path) -> float:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 2**20


def compare(folder: Path, count: int, workers: list[int]) -> None:
    # Numbers of workers above the number of cores are measured on purpose.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    items, images = generate(folder, count)
    for kind in ("jpeg", "raw"):
        build_store(items, images, folder / kind, SIZE, kind)
    write_original(images, folder / "original")
    # Otherwise the first reader would be timed while the last files are still being written.
    os.sync()
    readers = {
        "JPEG store": (ImageStore(folder / "jpeg").read, folder / "jpeg"),
        "raw store": (ImageStore(folder / "raw").read, folder / "raw"),
        "JPEG files, decoded and resized": (Files(images).read, images),
        "original LMDB, resized, fp32": (Originals(folder / "original").read, folder / "original"),
    }
    ids = [f"v{number}" for number in np.random.default_rng(0).permutation(count)]
    print(
        f"| images per second, of {count:,} | "
        + " | ".join(f"{n} worker{'s' * (n > 1)}" for n in workers)
        + " | MiB on disk |"
    )
    print("| :-- |" + " --: |" * (len(workers) + 1))
    for name, (read, path) in readers.items():
        rates = " | ".join(f"{images_per_second(read, ids, n):,.0f}" for n in workers)
        print(f"| {name} | {rates} | {mebibytes(path):,.0f} |", flush=True)


def resident(pid: int | str) -> int:
    """Return the resident bytes of a process and all its descendants; shared pages are counted for each process."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return own + sum(map(resident, children))


def build(folder: Path, count: int, workers: int) -> None:
    items, images = generate(folder, count)
    out = folder / "set.lmdb"
    command = [sys.executable, REPOSITORY / "Dataset" / "build_lmdb.py", "--items", items, "--images", images]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([*command, "--out", out, "--workers", str(workers)], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(1 / MEMORY_SAMPLES_A_SECOND)
    seconds = time.perf_counter() - started
    print(f"{count:,} images of {mebibytes(images):,.0f} MiB with {workers} workers: {seconds:.0f} s")
    print(f"peak memory of all processes {peak / 2**20:,.0f} MiB, store {mebibytes(out):,.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="number of images to read (default: 2000)")
    parser.add_argument(
        "--workers", type=int, nargs="+", help="numbers of worker processes (default: 1 2 4 to read, 2 to build)"
    )
    parser.add_argument("--build", type=int, metavar="N", help="build a store of N images instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.build:
            build(Path(temporary), arguments.build, (arguments.workers or [2])[0])
        else:
            compare(Path(temporary), arguments.images, arguments.workers or [1, 2, 4])
