"""A recommender's text or image encoder as a plain folder in Hugging Face format, for use without transrec."""

import copy
import shutil
import tempfile
from pathlib import Path

import loralib
import torch
from torch import nn

from transrec.errors import TransrecError, about_file
from transrec.models.towers import BackboneTower
from transrec.paths import make_folder


def merge(backbone: nn.Module) -> nn.Module:
    """A copy of the backbone with LoRA's updates added to the weights they update: W + scaling B A.

    Raises TransrecError when something is inserted that no weight can absorb.
    """
    merged = copy.deepcopy(backbone)
    for path, module in backbone.named_modules():
        if isinstance(module, loralib.Linear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            with torch.no_grad():
                plain.weight.copy_(module.weight + module.scaling * module.lora_B @ module.lora_A)
                if module.bias is not None:
                    plain.bias.copy_(module.bias)
            parent, _, name = path.rpartition(".")
            setattr(merged.get_submodule(parent), name, plain)
        elif type(module).__module__.startswith("transrec."):
            raise TransrecError(
                f"{path} holds a {type(module).__name__}, which cannot be merged into the weights around it; "
                f"only LoRA, BitFit, LayerNorm tuning and full fine-tuning give a plain backbone"
            )
    return merged


def export_backbone(tower: BackboneTower, folder: str | Path, processor=None) -> None:
    """Write a tower's backbone, merged, and its tokenizer or image processor, completely or not at all.

    Raises TransrecError when it cannot be merged, and when the folder exists already or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise TransrecError(f"{folder}: exists already; give another folder")
    merged = merge(tower.backbone)
    make_folder(folder.parent, "--out")
    with about_file(folder), tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        whole = Path(temporary) / folder.name
        merged.save_pretrained(whole)
        if processor is not None:
            processor.save_pretrained(whole)
        shutil.move(whole, folder)
