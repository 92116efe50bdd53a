"""Compare cached IISAN at the paper's shapes with a straightforward implementation and with its matrix products alone.

    python benchmarks/iisan_cached.py [--device cuda]

Shapes: 12,076 users, 20,825 items, 13 states of width 768 from each of two modalities, of which 7 are read, and batches
of 64. Ours gathers the rows of distinct items from one memory-mapped file per modality. The straightforward
implementation reads one file per item and modality for every slot of every sequence, including padding, encodes each
slot, and masks the softmax in loops over users and positions. The upper limit is the speed of the side network's matrix
products alone, forward and backward, on the same number of rows.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch
from measured import report
from torch import nn
from torch.nn import functional as F

from transrec.data.batches import Batch, TrainingBatches
from transrec.data.features import MultimodalFeatures
from transrec.data.interactions import Interactions, Sequences, leave_one_out
from transrec.data.states import StateBuilder, StateFeatures, StateFile
from transrec.methods.iisan import IISANOptions, SideItemEncoder
from transrec.models.objectives.in_batch import InBatchObjective
from transrec.models.recommender import Recommender
from transrec.models.towers import StoredTower
from transrec.models.user_encoders.sasrec import SASRec
from transrec.training.compiling import compile_encoders
from transrec.training.precision import DTYPES, Precision
from transrec.training.profiler import peak_memory_mib

WIDTH, BLOCKS, D, L = 768, 12, 64, 10
KEPT = [0, 2, 4, 6, 8, 10, 12]
CPU = torch.device("cpu")
# Everything is timed in alternating turns, after its first steps, which also load kernels.
TURNS, WARM_UP = 5, 3


def sequences(users: int, items: int) -> Interactions:
    """Return sequences whose lengths and item popularity are as skewed as Scientific's."""
    rng = np.random.default_rng(0)
    lengths = 5 + rng.geometric(0.45, users).clip(max=20)
    popularity = 1 / np.arange(1, items + 1) ** 0.6
    values = rng.choice(items, lengths.sum(), p=popularity / popularity.sum()).astype(np.int32)
    stops = np.cumsum(lengths)
    return Interactions(Path("made"), [str(u) for u in range(users)], Sequences(values, stops - lengths, stops))


def make_states(path: Path, items: int, count: int) -> StateFile:
    """Return a file with `count` random states per item, and make it if it does not exist."""
    if not path.exists():
        builder = StateBuilder(path, (items, count, WIDTH), "fp16", {})
        builder.begin()
        for start in builder.pending_blocks(0, 1):
            builder.write_block(start, torch.randn(min(256, items - start), count, WIDTH))
        builder.finish()
    return StateFile(path, {})


def state_features(
    folder: Path, rows: np.ndarray, items: int, count: int, place: str, device: torch.device = CPU
) -> MultimodalFeatures:
    """Return features with `count` states per item in two modalities, from files that are made if missing."""
    files = [make_states(folder / f"{modality}.safetensors", items, count) for modality in ("text", "image")]
    return MultimodalFeatures([StateFeatures(file, rows, device, place) for file in files])


def recommender(options: IISANOptions, device: torch.device = CPU) -> tuple[Recommender, torch.optim.Optimizer]:
    """Return a recommender over cached states, in training mode, and its optimiser."""
    torch.manual_seed(0)
    encoder = SideItemEncoder([StoredTower(kind, D, WIDTH, 1 + BLOCKS, BLOCKS) for kind in ("text", "image")], options)
    model = Recommender(encoder, SASRec(D, L, 2, 2, 0.1), InBatchObjective()).train().to(device)
    return model, torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)


def train(model: Recommender, optimizer: torch.optim.Optimizer, piece: Batch, features: MultimodalFeatures) -> float:
    """Take one training step; return the seconds that the host spent on feeding it."""
    device = features.parts[0].device
    started = time.perf_counter()
    batch = piece.to(device, features)
    feeding = time.perf_counter() - started
    optimizer.zero_grad(set_to_none=True)
    with Precision("auto", device).autocast():
        loss = model(batch) / piece.predictions
    loss.backward()
    optimizer.step()
    return feeding


def ours(
    folder: Path,
    batches: TrainingBatches,
    rows: np.ndarray,
    items: int,
    place: str,
    device: torch.device,
    compiled: bool = False,
) -> Iterator[int]:
    """Take a training step each time; yield its number of distinct items."""
    features = state_features(folder, rows, items, len(KEPT), place, device)
    model, optimizer = recommender(IISANOptions(), device)
    if compiled:
        compile_encoders(model)
    for (piece,) in chain.from_iterable(map(batches.epoch, count(1))):
        train(model, optimizer, piece, features)
        yield len(piece.items)


def now(device: torch.device) -> float:
    """Return the time once the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Plain(nn.Module):
    """A literal implementation of the paper, which encodes every slot separately."""

    def __init__(self):
        super().__init__()
        names = ("image", "text", "inter")
        self.down = nn.ModuleDict({n: nn.ModuleList(nn.Linear(WIDTH, 64) for _ in KEPT) for n in names})
        self.up = nn.ModuleDict({n: nn.ModuleList(nn.Linear(64, WIDTH) for _ in KEPT) for n in names})
        self.gates = nn.ParameterDict({n: nn.Parameter(torch.zeros(len(KEPT))) for n in names})
        self.end = nn.ModuleDict({n: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, D)) for n in names})
        self.fusion = nn.Linear(3 * D, D)
        self.users = SASRec(D, L, 2, 2, 0.1)

    def sanb(self, name, step, x):
        return x + self.up[name][step](F.relu(self.down[name][step](x)))

    def encode(self, text, image):
        states = {"text": text, "image": image}
        ends = []
        for name in ("image", "text", "inter"):
            s = torch.zeros_like(text[:, 0])
            for step in range(len(KEPT)):
                g = torch.sigmoid(self.gates[name][step] / 0.1)
                if name == "inter":
                    s = self.sanb(name, step, s + g * image[:, step] + (1 - g) * text[:, step])
                else:
                    s = self.sanb(name, step, g * states[name][:, step] + (1 - g) * s)
            ends.append(self.end[name](s))
        return self.fusion(torch.cat(ends, dim=1))


def plain(folder: Path, batches: TrainingBatches, steps: int, device: torch.device) -> Iterator[None]:
    """Take a training step of `Plain` each time, at most `steps`. Files of all their items are written at the start."""
    torch.manual_seed(0)
    model = Plain().train().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    work = []
    for (piece,) in islice(batches.epoch(1), steps):
        work.append((F.pad(piece.items, (1, 0))[piece.sequences], F.pad(piece.log_popularity, (1, 0))[piece.sequences]))
    generator = torch.Generator().manual_seed(0)
    for item in {0, *(int(i) for ids, _ in work for i in ids.flatten())}:
        for modality in ("text", "image"):
            torch.save(torch.randn(1 + BLOCKS, WIDTH, generator=generator), folder / f"{modality}-{item}.pt")
    for ids, log_popularity in work:
        states = {
            modality: torch.stack([torch.load(folder / f"{modality}-{int(i)}.pt")[KEPT] for i in ids.flatten()])
            for modality in ("text", "image")
        }
        states = {modality: tensor.to(device) for modality, tensor in states.items()}
        optimizer.zero_grad()
        embeddings = model.encode(states["text"], states["image"])
        slots = embeddings.view(*ids.shape, D)
        users = model.users(slots[:, :-1], (ids[:, :-1] > 0).float().to(device))
        logits = users.reshape(-1, D) @ embeddings.T - log_popularity.flatten().to(device)
        mask = torch.zeros(logits.shape, dtype=torch.bool)
        targets = []
        for user in range(len(ids)):
            held = set(ids[user].tolist())
            for position in range(L):
                row = user * L + position
                target = user * (L + 1) + position + 1
                targets.append(target)
                for slot, item in enumerate(ids.flatten().tolist()):
                    if slot != target and (item == 0 or item in held):
                        mask[row, slot] = True
        real = (ids[:, :-1] > 0).flatten()
        logits = logits.masked_fill(mask.to(device), -1e4)
        loss = F.cross_entropy(logits[real.to(device)], torch.tensor(targets)[real].to(device))
        loss.backward()
        optimizer.step()
        yield


def products(rows: int, device: torch.device) -> Iterator[None]:
    """Compute the side network's matrix products on `rows` rows each time: one forward and two backward each."""
    shapes = [(WIDTH, 64), (64, WIDTH)] * (3 * len(KEPT)) + [(WIDTH, WIDTH), (WIDTH, D)] * 3
    kind = {"device": device, "dtype": DTYPES[Precision("auto", device).name]}
    inputs = {width: torch.randn(rows, width, **kind) for width in {a for a, _ in shapes} | {b for _, b in shapes}}
    weights = [torch.randn(a, b, **kind) for a, b in shapes]
    while True:
        for (a, b), weight in zip(shapes, weights, strict=True):
            inputs[a] @ weight
            inputs[b] @ weight.T
            inputs[a].T @ inputs[b]
        yield


def seconds_per_step(work: Iterator, steps: int, device: torch.device) -> float:
    started = now(device)
    for _ in islice(work, steps):
        pass
    return (now(device) - started) / steps


def main(users: int, items: int, batch_size: int, steps: int, device: torch.device) -> None:
    split = leave_one_out(sequences(users, items), L, 5)
    batches = TrainingBatches(split, batch_size, negatives=False, last_only=False, seed=0)
    # A straightforward step takes as long as a dozen of ours.
    few = max(1, steps // 10)
    with tempfile.TemporaryDirectory() as name:
        shared = (Path(name), batches, split.item_rows, items)
        memory = "gpu" if device.type == "cuda" else "cpu"
        held = ours(*shared, memory, device)
        distinct = statistics.mean(islice(held, WARM_UP + steps))
        peak = peak_memory_mib(device)
        works = {
            "straightforward, a file per item": (plain(Path(name), batches, WARM_UP + TURNS * few, device), few),
            "ours, states on disk": (ours(*shared, "disk", device), steps),
            "ours, states in memory": (held, steps),
            "ours, compiled": (ours(*shared, memory, device, compiled=True), steps),
            "matrix products alone": (products(round(distinct), device), steps),
        }
        for work, _ in works.values():
            seconds_per_step(work, WARM_UP, device)
        turns = [{what: seconds_per_step(*work, device) for what, work in works.items()} for _ in range(TURNS)]
    seconds = {what: statistics.median(turn[what] for turn in turns) for what in works}
    straight, _, ours_held, compiled, alone = seconds.values()
    figures = {
        "share of the products' speed": alone / ours_held,
        "compiled share of the products' speed": alone / compiled,
        "times faster": straight / ours_held,
        "epochs in a second": 1 / (min(ours_held, compiled) * len(batches)),
        "MiB of memory": peak,
    }
    rows = [
        [what, f"{each:.4f}", f"{each * len(batches):.1f}", f"{straight / each:.1f}"] for what, each in seconds.items()
    ]
    header = [f"batch {batch_size}, {distinct:.0f} distinct items", "s per step", "s per epoch", "times faster"]
    report(header, rows, figures)
    print(
        f"\nours reaches {alone / ours_held:.0%} of the matrix products' speed, compiled {alone / compiled:.0%} "
        f"(medians of {TURNS} alternating turns)"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=12076)
    parser.add_argument("--items", type=int, default=20825)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="timed steps in each of five turns (a tenth of it for the straightforward implementation)",
    )
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    main(**vars(parser.parse_args()))
