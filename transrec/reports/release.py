"""Release a finished run as one folder: weights, embeddings, user encoder, model card, and all that loading needs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from transrec.assembly import checkpoint_file, stored_states, tower_of
from transrec.data.vectors import IDS
from transrec.errors import TransrecError
from transrec.export import atomic_folder, export_lora, export_user_encoder, low_rank_layers
from transrec.finished import FinishedRun
from transrec.modalities import BackboneModality
from transrec.models.backbone import load_image_processor, load_tokenizer
from transrec.models.held import widened
from transrec.models.quantised import quantisation
from transrec.models.towers import Tower
from transrec.paths import write_text
from transrec.reports.model_card import model_card
from transrec.reports.tables import read_result
from transrec.settings import digest
from transrec.training import checkpoint
from transrec.training.run import read_options

EXAMPLE = '''"""Recommend with this folder, by torch and numpy alone: python example.py ID ID ..."""

import sys
from pathlib import Path

import numpy as np
import torch

folder = Path(__file__).parent
items = torch.from_numpy(np.load(folder / "items" / "embeddings.npy"))
ids = (folder / "items" / "ids.txt").read_text(encoding="utf-8").splitlines()
user_encoder = torch.export.load(folder / "user_encoder.pt2").module()

history = [ids.index(item) for item in sys.argv[1:]]
read = history[-LENGTH:]
embeddings, mask = torch.zeros(1, LENGTH, items.shape[1]), torch.zeros(1, LENGTH, dtype=torch.bool)
embeddings[0, -len(read) :], mask[0, -len(read) :] = items[read], True
user = user_encoder(embeddings, mask)[0]
scores = SCORED
scores[history] = -torch.inf
for item in scores.topk(10).indices:
    print(ids[item], scores[item].item(), sep="\\t")
'''


def release(run: FinishedRun, out: Path, log: Callable[[str], None]) -> None:
    """Write a run as a folder that `load_run` reads; the folder is written completely or not at all.

    Args:
        log: called with a line for each part that is written or left out.

    Raises TransrecError if the folder already exists or cannot be written, if the run has no result, if its dataset is
    missing, if an encoder's weights are quantised, and for a user encoder that torch cannot export.
    """
    result = read_result(run.folder, tested=False)
    for name, modality in run.settings.modalities.items():
        if isinstance(modality, BackboneModality) and quantisation(modality.config, modality.encoder):
            raise TransrecError(
                f"{modality.encoder}: the weights of the {name} encoder are quantised, and a run over them "
                f"is not written as a folder to give away"
            )
    with atomic_folder(out) as folder:
        _write_items(run, folder / "items")
        log(f"items           embeddings.npy [{len(run.ids):,}, {run.user_encoder.width}] and {IDS}")
        length = run.settings.data.max_seq_len
        export_user_encoder(run.user_encoder, length, folder / "user_encoder.pt2")
        normalises = bool(getattr(run.objective, "normalise", False))
        scored = "torch.nn.functional.cosine_similarity(user, items)" if normalises else "user @ items.T"
        write_text(folder / "example.py", EXAMPLE.replace("LENGTH", str(length)).replace("SCORED", scored))
        log("user encoder    user_encoder.pt2, and example.py that loads it")
        for line in _write_lora(run, folder / "peft"):
            log(line)
        encoders = _write_encoders(run, folder)
        options = _options(run, encoders)
        write_text(folder / "options.json", json.dumps(options | {"digest": digest(options)}, indent=2) + "\n")
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
        _write_weights(run, folder / "checkpoints" / "best.safetensors", options)
        log("weights         checkpoints/best.safetensors, which load_run reads")
        write_text(folder / "README.md", model_card(run, result, sorted(path.name for path in folder.iterdir())))
        log("model card      README.md")


def _write_items(run: FinishedRun, folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "embeddings.npy", run.embeddings.cpu().numpy(), allow_pickle=False)
    write_text(folder / IDS, "".join(f"{item}\n" for item in run.ids))


def _write_lora(run: FinishedRun, folder: Path) -> list[str]:
    """Write each backbone's LoRA in peft's format; returns a line about each backbone."""
    lines = []
    settings = run.settings
    own = settings.run.checkpoint or settings.model.random_backbone
    own = own or getattr(settings.plan.method.options, "variant", "") == "published"
    for tower in cast(list[Tower], run.item_encoder.towers):
        if tower.backbone is None or not low_rank_layers(tower.backbone):
            continue
        try:
            encoder = settings.modalities[tower.modality].encoder
            # Of a folder of this computer, the name is all that means anything elsewhere.
            base = None if own else Path(encoder).name if Path(encoder).is_absolute() else encoder
            export_lora(tower.backbone, folder / tower.modality, base)
            lines.append(f"LoRA            peft/{tower.modality}, for PeftModel.from_pretrained")
        except TransrecError as error:
            lines.append(f"no LoRA         of {tower.modality} in peft's format: {error}")
    return lines


def _write_encoders(run: FinishedRun, folder: Path) -> dict[str, str]:
    """Write what loading a backbone needs besides its weights; returns its location, by the name of the flag.

    If the run read stored hidden states of a backbone, its weights are written, too: they encode new items.
    """
    places = {}
    plan = run.settings.plan
    stored = stored_states(plan)
    for name, modality in run.settings.modalities.items():
        if not isinstance(modality, BackboneModality):
            continue
        place = folder / "encoders" / name
        place.mkdir(parents=True)
        modality.config.save_pretrained(place)
        if name in stored:
            cast(Any, tower_of(plan, name).backbone).float().save_pretrained(place)
        load = {"text": load_tokenizer, "image": load_image_processor}.get(name, lambda encoder: None)
        if (processor := load(modality.encoder)) is not None:
            processor.save_pretrained(place)
        flags = [flag for flag, value in modality.options.as_dict().items() if value == modality.encoder]
        places |= dict.fromkeys(flags, f"./encoders/{name}")
    return places


def _options(run: FinishedRun, encoders: dict[str, str]) -> dict[str, Any]:
    """Return the run's options without the paths on this computer."""
    settings, stored = run.settings, read_options(run.folder)
    paths = {f.name for group in settings.groups for f in dataclasses.fields(group) if f.metadata.get("absolute")}
    options = {name: None if name in paths else value for name, value in settings.as_dict().items()}
    trains = settings.training.train_recommender
    if trains == "auto":
        trains = "no" if settings.run.checkpoint else "yes"
    files = {Path(path).name: file_digest for path, file_digest in stored.get("files", {}).items()}
    named = {name: path and Path(path).name for name in ("users_file", "items_file") for path in [options[name]]}
    return (
        options
        | named
        | encoders
        | {
            "dataset": run.dataset.name,
            "output": None,
            "resume": None,
            "train_recommender": trains,
            "random_backbone": False,
            "plugin": [Path(path).name for path in settings.run.plugin],
            "files": files,
            "set_by": {},
        }
    )


def _write_weights(run: FinishedRun, path: Path, options: dict[str, Any]) -> None:
    """Write all weights into one checkpoint that needs no base checkpoint."""
    description = checkpoint.describe(checkpoint_file(run.folder))
    encoders = {name: Path(encoder).name for name, encoder in description.base.encoders.items()}
    tensors = {name: widened(parameter) for name, parameter in run.named_parameters()}
    tensors |= {name: run.get_buffer(name) for name in run.saved_buffers}
    path.parent.mkdir()
    base = checkpoint.Base(None, "", encoders)
    checkpoint.save(path, tensors, dataclasses.replace(description, options=options, base=base))
