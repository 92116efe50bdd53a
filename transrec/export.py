"""Exports parts of a recommender for use without transrec: backbones for transformers, LoRA for peft, user encoders."""

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from transrec.errors import TransrecError, about_file, reason_of
from transrec.methods.base import plain_linear
from transrec.methods.lora import LowRankLinear
from transrec.models.backbone import declare_pooling, pooling
from transrec.models.towers import BackboneTower
from transrec.models.user_encoders import UserEncoder
from transrec.paths import make_folder, write_text


def merge(backbone: nn.Module) -> nn.Module:
    """Return a copy of the backbone in float32 as transformers builds it, with every inserted layer merged.

    An inserted layer is replaced by the result of its `merge` method.

    Raises TransrecError if an inserted layer has no `merge`. Its `cannot_merge`, if it has one, gives the reason.
    """
    plain = copy.deepcopy(backbone)
    with torch.device("meta"):
        kinds = {path: type(module) for path, module in type(backbone)(backbone.config).named_modules()}
    inserted = [(path, module) for path, module in plain.named_modules() if kinds.get(path) is not type(module)]
    for path, module in inserted:
        if hasattr(module, "merge"):
            parent, _, name = path.rpartition(".")
            setattr(plain.get_submodule(parent), name, module.merge())
    for path, module in plain.named_modules():
        if kinds.get(path) is not type(module):
            reason = getattr(module, "cannot_merge", "it cannot be merged into the weights around it")
            raise TransrecError(f"{path} holds a {type(module).__name__}: {reason}, so this is not a plain backbone")
    return plain.float()


def export_backbone(tower: BackboneTower, folder: str | Path, processor=None) -> None:
    """Write a tower's merged backbone and its tokenizer or image processor, completely or not at all.

    If texts are pooled in another way than is usual for the backbone, the folder declares it (sentence-transformers).

    Raises TransrecError if the backbone cannot be merged, and if the folder exists already or cannot be written.
    """
    merged = merge(tower.backbone)
    with atomic_folder(folder) as unfinished:
        merged.save_pretrained(unfinished)
        chosen = getattr(tower, "pooling", None)
        if chosen and chosen != pooling(merged.config, "auto"):
            declare_pooling(unfinished, chosen, tower.width)
        if processor is not None:
            processor.save_pretrained(unfinished)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder to fill. It becomes `folder` when the block ends, or is removed if the block raises an error.

    Raises TransrecError if the folder exists already or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise TransrecError(f"{folder}: exists already; give another folder")
    make_folder(folder.parent, "--out")
    with about_file(folder), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        unfinished.mkdir()
        yield unfinished
        shutil.move(unfinished, folder)


def low_rank_layers(backbone: nn.Module) -> dict[str, LowRankLinear]:
    """Return the LoRA layers in a backbone, by name."""
    return {path: module for path, module in backbone.named_modules() if isinstance(module, LowRankLinear)}


def export_lora(backbone: nn.Module, folder: Path, base: str | None) -> None:
    """Write the LoRA updates of a backbone in peft's format into a new folder, for PeftModel.from_pretrained.

    Args:
        base: the model that the updates apply to, as transformers names it; None: the backbone's own frozen weights,
            which are then written to `folder`/base.

    Raises TransrecError if anything but LoRA is inserted, or the LoRA layers differ in rank or scaling.
    """
    layers = low_rank_layers(backbone)
    sizes = {(layer.r, layer.scaling) for layer in layers.values()}
    if len(sizes) != 1:
        raise TransrecError(f"{len(sizes)} ranks and scalings among the LoRA layers; peft's format is written for one")
    ((rank, scaling),) = sizes
    frozen = copy.deepcopy(backbone)
    for path, layer in low_rank_layers(frozen).items():
        parent, _, name = path.rpartition(".")
        setattr(frozen.get_submodule(parent), name, plain_linear(layer.weight, layer.bias))
    frozen = merge(frozen)
    folder.mkdir(parents=True)
    if base is None:
        frozen.save_pretrained(folder / "base")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base or "base",
        "r": rank,
        "lora_alpha": scaling * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2) + "\n")
    tensors = {
        f"base_model.model.{path}.lora_{part}.weight": getattr(layer, f"lora_{part}").detach().cpu().contiguous()
        for path, layer in layers.items()
        for part in "AB"
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


class _LastUserVector(nn.Module):
    """Maps item embeddings [B, L, d] and a mask bool [B, L], left-padded, to user vectors [B, d]."""

    def __init__(self, user_encoder: UserEncoder):
        super().__init__()
        self.user_encoder = user_encoder

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        return self.user_encoder(item_embeddings, mask)[:, -1]


def export_user_encoder(user_encoder: UserEncoder, length: int, path: Path) -> None:
    """Write a user encoder with torch.export, for any number of users. `torch.export.load(path).module()` loads it.

    It takes item embeddings float32 [B, L, d] and a mask bool [B, L], left-padded, and returns user vectors [B, d].

    Args:
        length: L.

    Raises TransrecError if torch cannot export the user encoder.
    """
    module = _LastUserVector(copy.deepcopy(user_encoder).cpu()).eval()
    # Two users, because torch.export would treat a batch of one as the only possible batch size.
    example = torch.zeros(2, length, user_encoder.width), torch.ones(2, length, dtype=torch.bool)
    any_users = {0: torch.export.Dim.DYNAMIC}
    try:
        # torch.export warns about how torch's own recurrent layers hold their weights.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, example, dynamic_shapes=(any_users, any_users))
            torch.export.save(program, path)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        kind = type(user_encoder).__name__
        raise TransrecError(f"user encoder {kind}: torch.export cannot export it ({reason_of(error)})") from error
