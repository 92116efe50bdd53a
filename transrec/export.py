"""Parts of a recommender for use without transrec: backbones for transformers, LoRA for peft, the user encoder."""

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
from transrec.models.towers import BackboneTower
from transrec.models.user_encoders import UserEncoder
from transrec.paths import make_folder, write_text


def merge(backbone: nn.Module) -> nn.Module:
    """A copy of the backbone in float32 as transformers builds it: what its `merge` gives for every inserted layer.

    Raises TransrecError when something is inserted that has no `merge`, with its own word for why (`cannot_merge`).
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
            raise TransrecError(f"{path} holds a {type(module).__name__}: {reason}, so this is no plain backbone")
    return plain.float()


def export_backbone(tower: BackboneTower, folder: str | Path, processor=None) -> None:
    """Write a tower's backbone, merged, and its tokenizer or image processor, completely or not at all.

    Raises TransrecError when it cannot be merged, and when the folder exists already or cannot be written.
    """
    merged = merge(tower.backbone)
    with whole_folder(folder) as whole:
        merged.save_pretrained(whole)
        if processor is not None:
            processor.save_pretrained(whole)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes `folder` once it is filled, or is removed.

    Raises TransrecError when the folder exists already or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise TransrecError(f"{folder}: exists already; give another folder")
    make_folder(folder.parent, "--out")
    with about_file(folder), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        yield whole
        shutil.move(whole, folder)


def low_rank_layers(backbone: nn.Module) -> dict[str, LowRankLinear]:
    """LoRA's layers in a backbone, by their names."""
    return {path: module for path, module in backbone.named_modules() if isinstance(module, LowRankLinear)}


def export_lora(backbone: nn.Module, folder: Path, base: str | None) -> None:
    """Write LoRA's updates of a backbone in peft's format into a new folder, for PeftModel.from_pretrained.

    Args:
        base: what the updates are of, as transformers names it; None: the backbone's own frozen weights, which are then
            written to `folder`/base.

    Raises TransrecError where more is inserted than LoRA, or its layers differ in rank or scaling.
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
    """item embeddings [B, L, d] and mask bool [B, L], left-padded -> user vectors [B, d]."""

    def __init__(self, user_encoder: UserEncoder):
        super().__init__()
        self.user_encoder = user_encoder

    def forward(self, item_embeddings: Tensor, mask: Tensor) -> Tensor:
        return self.user_encoder(item_embeddings, mask)[:, -1]


def export_user_encoder(user_encoder: UserEncoder, length: int, path: Path) -> None:
    """Write a user encoder by torch.export, for any number of users: `torch.export.load(path).module()`.

    It takes item embeddings float32 [B, L, d] and a mask bool [B, L], left-padded, and gives user vectors [B, d].

    Args:
        length: L.

    Raises TransrecError for a user encoder that torch cannot export.
    """
    module = _LastUserVector(copy.deepcopy(user_encoder).cpu()).eval()
    # Of two users: torch.export takes one for all that there will ever be.
    example = torch.zeros(2, length, user_encoder.width), torch.ones(2, length, dtype=torch.bool)
    any_users = {0: torch.export.Dim.DYNAMIC}
    try:
        # It warns of how torch's own recurrent layers hold their weights.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, example, dynamic_shapes=(any_users, any_users))
            torch.export.save(program, path)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        kind = type(user_encoder).__name__
        raise TransrecError(f"user encoder {kind}: torch.export cannot export it ({reason_of(error)})") from error
