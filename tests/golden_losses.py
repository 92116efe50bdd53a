"""Records the losses and metrics of short runs, which a refactoring must not change, to the last bit.

    python tests/golden_losses.py           compare with tests/losses, name what differs
    python tests/golden_losses.py --record  write tests/losses again
    python tests/golden_losses.py --add     record the cases that have no line yet, and run no others

There is one file for each modality, and one line for each method and objective, and for each variant of a method: the
losses of an epoch of eight steps and the validation metrics after it, on tiny backbones, in fp32 and on one thread. The
first line of a file names the torch build and the processor on which its numbers were recorded; on others the last
digits differ. ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 makes a newer processor compute as one with AVX2 does. A
commit that changes numbers on purpose records them again and gives the reason. Everything that is registered has a
case: entries that CASES does not name train at sizes for tiny models.
"""

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from conftest import run  # noqa: E402
from examples import PACKAGED, small_flags, small_of, words_of  # noqa: E402

from transrec.data.demo import (  # noqa: E402
    IMAGE_STORE,
    Domain,
    make_domain_with_store,
    make_image_backbone,
    make_text_backbone,
)
from transrec.models.objectives import OBJECTIVES  # noqa: E402
from transrec.models.user_encoders import USER_ENCODERS  # noqa: E402
from transrec.training.trainer import Trainer  # noqa: E402

LOSSES = Path(__file__).with_name("losses")
STEPS = 8
# Every method trains with these objectives. The others are tried on a method that encodes items once, which one of them
# requires.
PAPERS = ("bce", "cpc", "in_batch")
# For runs on another processor or build of torch: of losses, and of metrics over 60 targets. Some targets have scores
# so close to another item's that rounding decides their ranks.
TOLERANCE, RANK_TOLERANCE = 1e-4, 3 / 60
METRICS_COLUMN = 3
ADAPTERS = "--insert all --adapter_lr 1e-3"
SIZES = f"{ADAPTERS} --item_bottleneck 8 --user_bottleneck 4"
SIDE = "--adapter_lr 1e-3 --side_size 8"
ATTRIBUTES = "--text_attributes title abstract --attribute_tokens 6 9"
# The name of a case, and its flags: they set every value that a preset could decide.
CASES = {
    "full": "--backbone_lr 1e-3",
    "full, normal": "--backbone_lr 1e-3 --init normal",
    "frozen": "",
    "frozen, cached": "--cached yes",
    "bitfit": ADAPTERS,
    "layernorm": ADAPTERS,
    "houlsby": SIZES,
    "houlsby, LayerNorms": f"{SIZES} --train_layernorm",
    "houlsby, gelu": f"{SIZES} --activation gelu",
    "houlsby, item": f"{SIZES} --insert item",
    "houlsby, user": f"{SIZES} --insert user",
    "houlsby, user, cached": f"{SIZES} --insert user --cached yes",
    "houlsby, first user block": f"{SIZES} --insert user_first",
    "parallel": SIZES,
    "parallel, published": f"{SIZES} --variant published",
    "pfeiffer": SIZES,
    "pfeiffer, published": f"{SIZES} --variant published",
    "pfeiffer, adapterhub": f"{SIZES} --variant adapterhub",
    "pfeiffer_attention": SIZES,
    "compacter": f"{SIZES} --kronecker 2",
    "compacter, published": f"{SIZES} --kronecker 2 --variant published",
    "lora": f"{ADAPTERS} --item_rank 4 --user_rank 2",
    "lora, published": f"{ADAPTERS} --item_rank 4 --user_rank 2 --variant published",
    "kadapter": f"{ADAPTERS} --item_size 8 --item_heads 2 --user_size 4 --user_heads 2",
    "kadapter, published": f"{ADAPTERS} --item_size 8 --item_heads 2 --user_size 4 --user_heads 2 --variant published",
    "prompt": "--insert item --adapter_lr 1e-3 --n_tokens 3",
    "prompt, published": "--insert item --adapter_lr 1e-3 --n_tokens 3 --variant published",
    "iisan": SIDE,
    "iisan, intra": f"{SIDE} --side_towers intra",
    "iisan, ungated": f"{SIDE} --no_side_gates --no_keep_embedding",
    "iisan, narrow": f"{SIDE} --narrow_end --side_layers 2",
    "iisan, auto": f"{SIDE} --cached auto",
    "iisan, cached": f"{SIDE} --cached --state_dtype fp32",
    "iisan, cached fp16": f"{SIDE} --cached --state_dtype fp16",
    "full, template": "--backbone_lr 1e-3 --text_template {title}/{brand}",
    "full, attributes": f"--backbone_lr 1e-3 {ATTRIBUTES}",
    "prompt, attributes": f"--insert item --adapter_lr 1e-3 --n_tokens 3 {ATTRIBUTES}",
}
CASES |= {name: f"{ADAPTERS} {' '.join(small_flags(name))}" for name in PACKAGED if name not in CASES}
CASES |= {
    f"full, {name}": f"{CASES['full']} --user_encoder {name}" for name in USER_ENCODERS.names() if name != "sasrec"
}
MODALITIES = ("text", "image", "multimodal", "id", "vector", "text+image+vector")
# Each user encoder takes those of these flags that it has.
USER = {"blocks": "2", "heads": "2", "dropout": "0.1"}
COMMON = (
    "--max_seq_len 6 --title_tokens 10 --embedding_dim 16 --epochs 1 --lr 1e-3 "
    "--train_recommender yes --precision fp32 --device cpu --image_workers 0 --seed 0 "
    "--cached no --init xavier"
)


def environment() -> str:
    """Return the environment that numbers depend on: torch, system and processor."""
    return f"torch {torch.__version__}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def names(modality: str) -> list[str]:
    """Return the cases of a modality."""
    if modality == "id":
        return ["full", "full, normal"]
    if modality == "vector":
        return ["full", "houlsby, user", "iisan"]
    if modality == "text+image+vector":
        return ["frozen", "houlsby", *(name for name in CASES if name.startswith("iisan"))]
    # Variants that need post-LN blocks: vision transformers are pre-LN.
    unfit = {"pfeiffer, published", "pfeiffer, adapterhub"} if modality != "text" else set()
    if modality == "image":
        unfit |= {name for name, flags in CASES.items() if "--text_" in flags}
    return [name for name in CASES if name not in unfit]


def prepare(folder: Path) -> list[str]:
    """Make the dataset and the backbones that all cases read; return the flags that name them."""
    make_domain_with_store(folder / "data", Domain("small", users=60, items=150, longest=9, seed=3))
    make_columns(folder / "data", folder / "columns")
    make_text_backbone(folder / "bert", hidden_size=32, layers=2)
    make_image_backbone(folder / "vit", hidden_size=32, layers=2)
    users = int((folder / "data/users.tsv").read_text().count("\n"))
    return [
        *("--dataset", str(folder / "data"), "--batch_size", str(-(-users // STEPS))),
        *("--text_encoder", str(folder / "bert"), "--image_encoder", str(folder / "vit")),
    ]


def make_columns(dataset: Path, folder: Path) -> None:
    """Write the same users and items with titles divided into columns; every seventh item has no abstract."""
    folder.mkdir()
    (folder / "users.tsv").write_bytes((dataset / "users.tsv").read_bytes())
    lines = ["item_id\tbrand\ttitle\tabstract"]
    for number, line in enumerate((dataset / "items.tsv").read_text().splitlines()):
        item, title = line.split("\t")
        brand, filler, style, topic = title.split(" ")
        lines.append("\t".join([item, brand, topic, *([f"{filler} {style} {topic}"] if number % 7 else [])]))
    (folder / "items.tsv").write_text("\n".join(lines))


def numbers(modality: str, name: str, objective: str, given: list[str], output: Path) -> str:
    """Return the line of a case: the loss of each step, and each validation metric."""
    losses: list[float] = []
    step = Trainer._step

    def noted(trainer, *arguments):
        loss = step(trainer, *arguments)
        losses.append(float(loss))
        return loss

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Trainer._step = noted
    try:
        words = [*given, *COMMON.split(), *CASES[name].split(), "--item_tower", modality, "--objective", objective]
        words += _user_encoder_flags(words) + words_of(small_of(OBJECTIVES.get(objective).Options))
        if "--text_" in CASES[name]:
            data = Path(words[words.index("--dataset") + 1])
            words += ["--dataset", str(data.with_name("columns")), "--images", str(data / IMAGE_STORE)]
        if "--cached" in CASES[name]:
            words += ["--state_cache", f"{output}-states"]
        result = run([*words, "--output", str(output)], name.partition(",")[0])
    finally:
        Trainer._step = step
        torch.set_num_threads(threads)
    if len(losses) != STEPS:
        raise AssertionError(f"{name}: took {len(losses)} steps")
    metrics = "  ".join(f"{metric} {value!r}" for metric, value in result["validation"].items())
    return f"{name} | {objective} | {' '.join(map(repr, losses))} | {metrics}"


def _user_encoder_flags(words: list[str]) -> list[str]:
    name = words[words.index("--user_encoder") + 1] if "--user_encoder" in words else "sasrec"
    has = USER_ENCODERS.get(name).Options.defaults()
    return words_of({flag: value for flag, value in USER.items() if flag in has})


def objectives(modality: str, name: str) -> list[str]:
    """Return the objectives with which a case trains: only one for variants."""
    if (modality, name) == ("text", "frozen, cached"):
        return [PAPERS[-1], *(other for other in OBJECTIVES.names() if other not in PAPERS)]
    return list(PAPERS if name in PACKAGED else PAPERS[-1:])


def line(modality: str, name: str, objective: str, given: list[str], folder: Path) -> str:
    """Return the line of a case with an objective."""
    return numbers(modality, name, objective, given, folder / f"{modality}-{name.replace(' ', '_')}-{objective}")


def cases(modality: str, name: str, given: list[str], folder: Path) -> Iterator[str]:
    """Yield the lines of a case, one for each objective."""
    for objective in objectives(modality, name):
        yield line(modality, name, objective, given, folder)


def recorded(modality: str) -> tuple[str, dict[tuple[str, str], str]]:
    """Return the environment that a file names, and its lines by case and objective."""
    first, *lines = (LOSSES / f"{modality}.txt").read_text().splitlines()
    return first, {tuple(line.split(" | ")[:2]): line for line in lines}


def differs(now: str, before: str, exact: bool) -> bool:
    """Return whether two lines differ; if not `exact`, losses may differ by TOLERANCE and metrics by RANK_TOLERANCE."""
    if exact or now == before:
        return now != before
    columns = zip(now.split(" | "), before.split(" | "), strict=True)
    return not all(
        one == other or _near(one, other, TOLERANCE if place < METRICS_COLUMN else RANK_TOLERANCE)
        for place, column in enumerate(columns)
        for one, other in zip(*map(str.split, column), strict=True)
    )


def _near(one: str, other: str, limit: float) -> bool:
    try:
        return abs(float(one) - float(other)) <= limit * max(1, abs(float(other)))
    except ValueError:
        return False


def add() -> None:
    """Record the cases that have no line yet; the others keep theirs."""
    with tempfile.TemporaryDirectory() as temporary:
        flags = prepare(Path(temporary))
        for modality in MODALITIES:
            origin, before = recorded(modality)
            keys = [(name, objective) for name in names(modality) for objective in objectives(modality, name)]
            lines = [before.get(key) or line(modality, *key, flags, Path(temporary) / "run") for key in keys]
            (LOSSES / f"{modality}.txt").write_text("\n".join([origin, *lines]) + "\n")


def main(record: bool) -> int:
    """Record all lines, or compare them and return how many differ."""
    different = 0
    with tempfile.TemporaryDirectory() as temporary:
        flags = prepare(Path(temporary))
        for modality in MODALITIES:
            lines = [one for name in names(modality) for one in cases(modality, name, flags, Path(temporary) / "run")]
            if record:
                LOSSES.mkdir(exist_ok=True)
                (LOSSES / f"{modality}.txt").write_text("\n".join([environment(), *lines]) + "\n")
                continue
            origin, before = recorded(modality)
            for now in lines:
                key = tuple(now.split(" | ")[:2])
                if key not in before or differs(now, before[key], origin == environment()):
                    different += 1
                    print(f"{modality}: was {before.get(key)}\n{modality}: now {now}")
    return different


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write tests/losses again")
    parser.add_argument("--add", action="store_true", help="record the cases that have no line yet")
    arguments = parser.parse_args()
    sys.exit(add() if arguments.add else bool(main(arguments.record)))
