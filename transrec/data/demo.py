"""Generates a small two-domain dataset and tiny backbones.

Each item has a topic and a style. Its title names both, each by one of several words, and adds a brand and a filler
word that mean nothing; its image shows the topic as a grating and the style as a colour; its vector encodes both, with
noise. A user mostly stays with a topic while the style advances cyclically, so the words of the last item predict the
next one. Both domains share the vocabulary and this rule but have different items and users: what a model learns on the
large source transfers, and the small target alone is too little to learn it from.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from transrec.data.images.build import build_store
from transrec.errors import about_file

TOPICS = {
    "lamp": "lamp lantern light torch",
    "knife": "knife blade cutter cleaver",
    "chair": "chair stool seat bench",
    "shirt": "shirt blouse tee jersey",
    "phone": "phone handset mobile receiver",
    "drum": "drum snare bongo cymbal",
    "tent": "tent shelter canopy tarp",
    "brush": "brush comb broom sponge",
    "clock": "clock watch timer hourglass",
    "glove": "glove mitten gauntlet mitt",
    "bowl": "bowl dish plate saucer",
    "rope": "rope cord cable string",
    "spoon": "spoon ladle fork spatula",
    "boot": "boot shoe sneaker sandal",
    "pen": "pen pencil marker crayon",
    "bag": "bag backpack pouch satchel",
    "hammer": "hammer mallet wrench pliers",
    "pillow": "pillow cushion bolster mattress",
    "bottle": "bottle flask jug canteen",
    "wheel": "wheel tyre rim hub",
    "mirror": "mirror frame picture poster",
    "hat": "hat cap beanie helmet",
    "ball": "ball puck shuttle dart",
    "candle": "candle incense diffuser wax",
}
STYLES = {
    "red": "red scarlet crimson ruby",
    "yellow": "yellow golden amber lemon",
    "green": "green emerald olive jade",
    "blue": "blue azure navy cobalt",
    "purple": "purple violet lilac mauve",
    "black": "black ebony onyx jet",
}
FILLERS = [
    "new",
    "classic",
    "premium",
    "basic",
    "deluxe",
    "compact",
    "large",
    "small",
    "light",
    "heavy",
    "pack",
    "set",
    "kit",
    "edition",
    "series",
    "model",
]
BRANDS = [a + b for a, b in itertools.product(("ac", "bel", "cor", "dun", "el", "far"), ("ma", "ton", "vex", "rio"))]
COLOURS = {
    "red": (220, 40, 40),
    "yellow": (235, 200, 40),
    "green": (40, 160, 70),
    "blue": (50, 90, 220),
    "purple": (140, 60, 180),
    "black": (30, 30, 30),
}
STAYS_WITH_TOPIC = 0.85
STYLE_ADVANCES = 0.85
VECTOR_NOISE = 0.3
IMAGE_SIZE = 32
# BERT's own 0.02 suits a width of 768; at 64 it leaves every title at almost the same vector.
INITIALIZER_RANGE = 0.1


@dataclass(frozen=True)
class Domain:
    """The name, size and seed of one domain.

    Attributes:
        items: number of items, at least one for each pair of topic and style (144).
        longest: length of the longest sequence; each user has 5 to `longest` interactions.
        seed: decides the items and users.
    """

    name: str
    users: int
    items: int
    longest: int
    seed: int


SOURCE = Domain("source", users=3000, items=1000, longest=12, seed=1)
TARGET = Domain("target", users=300, items=700, longest=7, seed=2)
TEXT_BACKBONE = "demo-bert"
IMAGE_BACKBONE = "demo-vit"
IMAGE_STORE = "images.lmdb"


def make_domain(folder: Path, domain: Domain) -> None:
    """Write users.tsv, items.tsv, dataset.json, images/ID.png (32 x 32), features.npy and ids.txt of one domain."""
    rng = np.random.default_rng(domain.seed)
    topics, styles = list(TOPICS), list(STYLES)
    # Items are spread evenly over the (topic, style) pairs, in random order.
    pair_of = rng.permutation(np.arange(domain.items) % (len(topics) * len(styles)))
    by_pair = [np.flatnonzero(pair_of == pair) for pair in range(len(topics) * len(styles))]
    ids = [f"{domain.name[0].upper()}{number:05d}" for number in range(domain.items)]

    def pick(words) -> str:
        return str(rng.choice(words))

    lines = []
    for item, pair in zip(ids, pair_of, strict=True):
        topic, style = divmod(int(pair), len(styles))
        words = [pick(BRANDS), pick(FILLERS), pick(STYLES[styles[style]].split()), pick(TOPICS[topics[topic]].split())]
        lines.append(f"{item}\t{' '.join(words)}\n")

    behaviours = []
    for user in range(domain.users):
        topic, style = int(rng.integers(len(topics))), int(rng.integers(len(styles)))
        sequence: list[int] = []
        for _ in range(int(rng.integers(5, domain.longest + 1))):
            sequence.append(_popular_first(rng, by_pair[topic * len(styles) + style], sequence))
            if rng.random() > STAYS_WITH_TOPIC:
                topic = int(rng.integers(len(topics)))
            step = 1 if rng.random() < STYLE_ADVANCES else int(rng.integers(len(styles)))
            style = (style + step) % len(styles)
        behaviours.append(f"{domain.name}{user}\t{' '.join(ids[item] for item in sequence)}\n")

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "items.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "users.tsv").write_text("".join(behaviours), encoding="utf-8")
    described = {"users": "users.tsv", "items": "items.tsv", "images": "images"}
    (folder / "dataset.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    _draw(folder / "images", ids, pair_of, rng)
    marks = np.concatenate([np.eye(len(topics))[pair_of // len(styles)], np.eye(len(styles))[pair_of % len(styles)]], 1)
    # A separate generator, so that the other random draws do not depend on the noise.
    noise = np.random.default_rng([domain.seed, 1]).normal(0, VECTOR_NOISE, marks.shape)
    np.save(folder / "features.npy", (marks + noise).astype(np.float32))
    (folder / "ids.txt").write_text("".join(f"{item}\n" for item in ids), encoding="utf-8")


def make_domain_with_store(folder: Path, domain: Domain, size: int = IMAGE_SIZE) -> None:
    """Write the files of `make_domain` and an image store, with the images enlarged to size x size pixels."""
    make_domain(folder, domain)
    kind = "raw" if size == IMAGE_SIZE else "jpeg"
    build_store(folder / "items.tsv", folder / "images", folder / IMAGE_STORE, size, kind)


def _popular_first(rng: np.random.Generator, candidates: np.ndarray, seen: list[int]) -> int:
    """Draw a candidate, if possible not in `seen`, earlier ones more often (popularity, the same for all users)."""
    fresh = candidates[~np.isin(candidates, seen)]
    fresh = fresh if len(fresh) else candidates
    weights = 1 / np.sqrt(1 + np.arange(len(fresh)))
    return int(rng.choice(fresh, p=weights / weights.sum()))


def _draw(folder: Path, ids: list[str], pair_of: np.ndarray, rng: np.random.Generator) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    styles = list(STYLES)
    rows, columns = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    for item, pair in zip(ids, pair_of, strict=True):
        topic, style = divmod(int(pair), len(styles))
        # Each topic is a grating: six frequencies in four directions.
        angle, frequency = (topic % 4) * np.pi / 4, 2 + topic // 4
        wave = np.cos(angle) * columns + np.sin(angle) * rows
        shape = np.sin(2 * np.pi * frequency * wave / IMAGE_SIZE + rng.uniform(0, 2 * np.pi)) > 0
        picture = np.where(shape[..., None], COLOURS[styles[style]], (240, 240, 240))
        picture = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{item}.png")


def make_text_backbone(
    folder: Path,
    hidden_size: int = 64,
    layers: int = 2,
    seed: int = 0,
    kind: Literal["bert", "roberta", "llama"] = "bert",
    heads: int = 2,
    inner_size: int | None = None,
) -> None:
    """Save an encoder or a decoder with random weights, tiny by default, in Hugging Face format.

    Its tokenizer's vocabulary holds the demo's words.
    """
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    # A Llama's tokenizer adds a token at the start and none at the end, and has no padding token.
    special, named = {
        "bert": (
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]"},
        ),
        "roberta": (
            ["<s>", "<pad>", "</s>", "<unk>"],
            {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"},
        ),
        "llama": (["<unk>", "<s>", "</s>"], {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}),
    }[kind]
    first, last = named.get("cls") or named["bos"], named.get("sep")
    meaningful = " ".join([*TOPICS.values(), *STYLES.values()]).split()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789")
    pieces = special + sorted({*meaningful, *FILLERS, *BRANDS, *letters}) + [f"##{letter}" for letter in letters]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=named["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, (first, "$A", last))),
        special_tokens=[(token, vocabulary[token]) for token in (first, last) if token],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": token for role, token in named.items()}
    )
    # The model is too narrow for dropout of 0.1: with it, learning anything takes ten times as many steps.
    dropout = {} if kind == "llama" else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(pieces),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner_size or 2 * hidden_size,
        max_position_embeddings=40,
        initializer_range=INITIALIZER_RANGE,
        **dropout,
        pad_token_id=vocabulary.get(named.get("pad", "")),
        bos_token_id=vocabulary[first],
        eos_token_id=vocabulary[last or named["eos"]],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config, trust_remote_code=False)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def make_image_backbone(
    folder: Path,
    hidden_size: int = 64,
    layers: int = 2,
    seed: int = 0,
    mae: bool = False,
    heads: int = 2,
    inner_size: int | None = None,
    image_size: int = IMAGE_SIZE,
    patch_size: int = 8,
) -> None:
    """Save a ViT or MAE with random weights, tiny by default, in Hugging Face format."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTMAEConfig, ViTMAEModel, ViTModel

    sizes: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner_size or 2 * hidden_size,
        "image_size": image_size,
        "patch_size": patch_size,
        "initializer_range": INITIALIZER_RANGE,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ViTMAEModel(ViTMAEConfig(**sizes)) if mae else ViTModel(ViTConfig(**sizes))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": image_size, "width": image_size}).save_pretrained(folder)


@dataclass(frozen=True)
class Demo:
    """The folders of the demo's datasets and backbones."""

    source: Path
    target: Path
    text_backbone: Path
    image_backbone: Path


def make_demo(datasets: Path, backbones: Path) -> Demo:
    """Make the source domain, the target domain and the backbones, each only if it is missing."""
    makers = {
        datasets / "source": lambda folder: make_domain_with_store(folder, SOURCE),
        datasets / "target": lambda folder: make_domain_with_store(folder, TARGET),
        backbones / TEXT_BACKBONE: make_text_backbone,
        backbones / IMAGE_BACKBONE: make_image_backbone,
    }
    for folder, make in makers.items():
        make_if_missing(folder, make)
    return Demo(*makers)


def make_if_missing(folder: Path, make: Callable[[Path], None]) -> None:
    """Call `make` to create a folder, completely or not at all, unless it exists."""
    if not folder.exists():
        with about_file(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with about_file(folder), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            make(Path(temporary) / folder.name)
            shutil.move(Path(temporary) / folder.name, folder)
