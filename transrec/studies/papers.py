"""Datasets and backbones of the papers' tables, and the tables' quick form (`scripts/reproduce/`)."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transrec.data.demo import (
    SOURCE,
    TARGET,
    make_domain_with_store,
    make_if_missing,
    make_image_backbone,
    make_text_backbone,
)
from transrec.errors import TransrecError, printable
from transrec.paths import resolve
from transrec.reports.published import COSTS, Published
from transrec.studies.grid import Axis, Grid, encoder_axis

# Sizes at which each run takes one step of one batch.
QUICK_DOMAIN = {"users": 60, "items": 150}
QUICK = {"epochs": "1", "batch_size": "64", "max_seq_len": "6", "baselines": "popularity"}
# Titles short enough for the tiny text encoders, even with a soft prompt in front.
QUICK_TEXT = {"title_tokens": "8"}
# Functions that make a tiny backbone. The first function whose key is part of the original backbone's name is used. The
# tiny backbones are as deep as those in the papers, so that flags with layer numbers fit them.
STAND_INS: dict[str, Callable[[Path], None]] = {
    "roberta": partial(make_text_backbone, layers=12, kind="roberta"),
    "bert": partial(make_text_backbone, layers=12),
    "llama": partial(make_text_backbone, layers=16, hidden_size=96, kind="llama"),
    "mae": partial(make_image_backbone, layers=12, mae=True),
    "": partial(make_image_backbone, layers=12),
}


@dataclass(frozen=True)
class Paper:
    """A paper with tables.

    Attributes:
        domains: by modality, the folders of the source dataset (None if nothing is pretrained) and the target dataset.
    """

    name: str
    domains: Mapping[str, tuple[str | None, str]]


ADAPTER4REC = Paper(
    "Adapter4Rec", {"text": ("Dataset/MIND", "Dataset/Adressa"), "image": ("Dataset/HM", "Dataset/Amazon")}
)
IISAN = Paper("IISAN", {"multimodal": (None, "Dataset/Scientific")})
IISAN_VERSA = Paper("IISAN-Versa", IISAN.domains)


@dataclass(frozen=True)
class Table:
    """A table of a paper, by its name in the published figures."""

    paper: Paper
    name: str

    def prepare(self, options: argparse.Namespace, out: Path, grid: Grid) -> tuple[Grid, dict[str, str]]:
        """Fill in datasets that are not given; with --quick, generate tiny datasets and backbones.

        Returns the grid, and the default flags of its runs.
        """
        source, target = self.paper.domains[options.modality]
        flags = {"protocol": "published"}
        if options.quick:
            demo = out / "demo"
            source = source and str(_make_domain(demo, "source"))
            target = str(_make_domain(demo, "target"))
            grid = replace(grid, axes=tuple(_with_stand_ins(axis, demo) for axis in grid.axes))
            flags |= QUICK | (QUICK_TEXT if options.modality != "image" else {})
            if not any(map(_is_encoder_axis, grid.axes)):
                axis = _with_stand_ins(encoder_axis().for_modality(options.modality), demo)
                flags |= axis.settings(*axis.values)
        options.source = options.source or source
        options.target = options.target or target
        return grid, flags

    def check(self, options: argparse.Namespace) -> None:
        """Raise TransrecError if a dataset does not exist. Call this before any backbone is loaded."""
        for name in ("source", "target"):
            folder = getattr(options, name)
            if folder and not resolve(folder).is_dir():
                raise TransrecError(
                    f"{folder}: no such dataset folder; Dataset/README.md tells where the papers' sets come from, "
                    f"--{name} chooses another, and --quick tries the table without it"
                )

    def requirements(self, options: argparse.Namespace, grid: Grid, published: Published) -> str:
        """Return the lines that tell what the table needs: datasets, backbones, checkpoints and published costs."""
        axes = [*filter(_is_encoder_axis, grid.axes)] or [encoder_axis().for_modality(options.modality)]
        backbones = dict.fromkeys(name for axis in axes for value in axis.values for name in value.split(","))
        source = f"{options.source} to pretrain on" if options.source else "nothing to pretrain on"
        lines = [
            f"table       {self.paper.name}, {self.name}, by the authors' settings (unless you give others)",
            f"datasets    {source}, {options.target}; Dataset/README.md tells where the papers' sets come from",
            f"backbones   {'tiny ones' if options.quick else ', '.join(backbones)}",
            f"checkpoints {'none, the source runs come first' if options.source else 'none'}",
            f"published   {_costs(published)}; hours in all and the GPU: not known",
        ]
        if options.quick:
            lines.append("quick       a step of each run over made-up data: that it runs, not what the paper found")
        return "\n".join(map(printable, lines))


def _costs(published: Published) -> str:
    """Return the published costs of a run as text."""
    costs: dict[str, list[str]] = {}
    for figure in published.figures:
        if figure.metric in COSTS:
            costs.setdefault(figure.method, []).append(f"{figure.metric} {figure.value}")
    return (
        ", ".join(f"{name}: {' and '.join(texts)}" for name, texts in costs.items()) or "memory and seconds: not known"
    )


def _make_domain(folder: Path, name: str) -> Path:
    domain = replace({"source": SOURCE, "target": TARGET}[name], **QUICK_DOMAIN)
    make_if_missing(folder / name, lambda place: make_domain_with_store(place, domain))
    return folder / name


def _is_encoder_axis(axis: Axis) -> bool:
    return all(flag in ("text_encoder", "image_encoder") for flag in axis.flags)


def _with_stand_ins(axis: Axis, folder: Path) -> Axis:
    """Return an axis of backbones with tiny backbones as its values, and any other axis as it is."""
    if not _is_encoder_axis(axis):
        return axis
    return replace(axis, values=tuple(",".join(_stand_in(n, folder) for n in v.split(",")) for v in axis.values))


def _stand_in(name: str, folder: Path) -> str:
    make = next(make for part, make in STAND_INS.items() if part in name.lower())
    place = folder / f"tiny-{Path(name).name}"
    make_if_missing(place, make)
    return str(place)
