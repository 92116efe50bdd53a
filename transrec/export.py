"""A recommender's text or image encoder as a plain folder in Hugging Face format, for use without transrec."""

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from transrec.errors import TransrecError, about_file
from transrec.models.towers import BackboneTower
from transrec.paths import make_folder


def merge(backbone: nn.Module) -> nn.Module:
    """A copy of the backbone as transformers builds it: every inserted layer replaced by what its `merge` gives.

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
    return plain


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
