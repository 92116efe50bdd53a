"""What a study varies: axes, and the points of their grid."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from transrec import modalities
from transrec.errors import TransrecError
from transrec.options import ModelOptions

# What a study's items may be represented by; the word is that of --item_tower.
MODALITIES = ("text", "image", "multimodal")


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid.

    Attributes:
        name: the table's column, and the command-line flag that gives other values.
        values: of which a point takes one; or, where these differ, those of each modality.
        flags: what a value sets, by default the flag of the axis' name; or those of each modality. A flag
            "source.NAME" or "target.NAME" is for the runs of that stage alone.
        divider: stands between the parts of a value that sets several flags. A part of several words is divided by ",".
        named: by value, those that set flags of their own, by flag. What one sets beside a method is for that method's
            runs alone, not for the source runs.
        meaning: what a value stands for, given the values of all axes at a point; None: itself.
    """

    name: str
    values: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    flags: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    divider: str = "/"
    named: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    meaning: Callable[[str, Mapping[str, str]], str] | None = None

    def over(self, modality: str, values: list[str] | None = None) -> "Axis":
        """The axis in studies over a modality, with other values if some are given."""
        of_modality = self.values[modality] if isinstance(self.values, Mapping) else self.values
        flags = self.flags[modality] if isinstance(self.flags, Mapping) else self.flags
        return replace(self, values=tuple(values or of_modality), flags=flags or (self.name,))

    def settings(self, value: str) -> dict[str, str]:
        """The flags that a value sets. Raises TransrecError when it has not as many parts as there are flags."""
        if value in self.named:
            return dict(self.named[value])
        flags = self.flags or (self.name,)
        parts = value.split(self.divider) if len(flags) > 1 else [value]
        if len(parts) != len(flags):
            raise TransrecError(f"--{self.name} {value}: give {self.divider.join(flag.upper() for flag in flags)}")
        return dict(zip(flags, parts, strict=True))


def encoder_axis() -> Axis:
    """The axis of backbones, by default the one that is --text_encoder's or --image_encoder's default.

    Over titles and images a value names both, like bert-base-uncased,google/vit-base-patch16-224.
    """
    read_by = {name: ModelOptions(item_tower=name).read_by for name in MODALITIES}
    flags = {name: tuple(f"{read}_encoder" for read in of) for name, of in read_by.items()}
    values = {
        name: (",".join(modalities.get(read).Options.defaults()[f"{read}_encoder"] for read in of),)
        for name, of in read_by.items()
    }
    return Axis("encoder", values, flags, divider=",")


@dataclass(frozen=True)
class Grid:
    """All combinations of the axes' values.

    The axes of `singly` are varied one at a time, the others of them at their first value.
    """

    axes: tuple[Axis, ...]
    singly: tuple[str, ...] = ()

    def with_values(self, **values: tuple[str, ...] | Mapping[str, tuple[str, ...]]) -> "Grid":
        """The same with other values of some axes, by their names. Raises KeyError for an axis that it has not."""
        axes = {axis.name: axis for axis in self.axes}
        axes |= {name: replace(axes[name], values=of) for name, of in values.items()}
        return replace(self, axes=tuple(axes.values()))

    def points(self) -> list[dict[str, str]]:
        """Each point as a value for each axis."""
        first = {axis.name: axis.values[0] for axis in self.axes}
        points = []
        for values in itertools.product(*(dict.fromkeys(axis.values) for axis in self.axes)):
            point = dict(zip(first, values, strict=True))
            if sum(point[name] != first[name] for name in self.singly) <= 1:
                points.append(self._meant(point))
        return points

    def _meant(self, point: dict[str, str]) -> dict[str, str]:
        meanings = {axis.name: axis.meaning(point[axis.name], point) for axis in self.axes if axis.meaning}
        return point | meanings
