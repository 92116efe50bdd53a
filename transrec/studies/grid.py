"""Axes, the settings that a study varies, and grids, their combinations."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from transrec import modalities
from transrec.errors import TransrecError
from transrec.options import ModelOptions

# The modalities of a study's items, named as in --item_tower.
MODALITIES = ("text", "image", "multimodal")


@dataclass(frozen=True)
class Axis:
    """One dimension of a grid.

    Attributes:
        name: name of the table's column, and of the command-line flag that gives other values.
        values: the values, of which each point takes one; a mapping from modality to values if modalities differ.
        flags: the flags that a value sets, by default the flag with the axis' name; or a mapping from modality to
            flags. A flag "source.NAME" or "target.NAME" applies only to runs of that stage.
        divider: separates the parts of a value that sets several flags. The words within a part are separated by ",".
        named: for values that set flags of their own, a mapping from value to settings by flag. If these include the
            method, all of them apply only to the target runs, not to the source runs.
        meaning: function from a value and the values of all axes at a point to the value to use instead; None: values
            are used as they are.
    """

    name: str
    values: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    flags: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    divider: str = "/"
    named: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    meaning: Callable[[str, Mapping[str, str]], str] | None = None

    def for_modality(self, modality: str, values: list[str] | None = None) -> "Axis":
        """Return the axis for studies over a modality, with `values` if given."""
        of_modality = self.values[modality] if isinstance(self.values, Mapping) else self.values
        flags = self.flags[modality] if isinstance(self.flags, Mapping) else self.flags
        return replace(self, values=tuple(values or of_modality), flags=flags or (self.name,))

    def settings(self, value: str) -> dict[str, str]:
        """Return the flags that a value sets. Raises TransrecError if the value does not have one part per flag."""
        if value in self.named:
            return dict(self.named[value])
        flags = self.flags or (self.name,)
        parts = value.split(self.divider) if len(flags) > 1 else [value]
        if len(parts) != len(flags):
            raise TransrecError(f"--{self.name} {value}: give {self.divider.join(flag.upper() for flag in flags)}")
        return dict(zip(flags, parts, strict=True))


def encoder_axis() -> Axis:
    """Return the axis of backbones. Its default values are the defaults of --text_encoder and --image_encoder.

    Over titles and images a value names both encoders, like bert-base-uncased,google/vit-base-patch16-224.
    """
    read_by = {name: ModelOptions(item_tower=name).modality_names for name in MODALITIES}
    flags = {name: tuple(f"{read}_encoder" for read in kinds) for name, kinds in read_by.items()}
    values = {
        name: (",".join(modalities.get(read).Options.defaults()[f"{read}_encoder"] for read in kinds),)
        for name, kinds in read_by.items()
    }
    return Axis("encoder", values, flags, divider=",")


@dataclass(frozen=True)
class Grid:
    """All combinations of the axes' values.

    At most one of the axes named in `singly` deviates from its first value at any point.
    """

    axes: tuple[Axis, ...]
    singly: tuple[str, ...] = ()

    def with_values(self, **values: tuple[str, ...] | Mapping[str, tuple[str, ...]]) -> "Grid":
        """Return the grid with other values for the named axes. Raises KeyError if the grid has no such axis."""
        axes = {axis.name: axis for axis in self.axes}
        axes |= {name: replace(axes[name], values=changed) for name, changed in values.items()}
        return replace(self, axes=tuple(axes.values()))

    def points(self) -> list[dict[str, str]]:
        """Return the points, each as a mapping from axis name to value."""
        first = {axis.name: axis.values[0] for axis in self.axes}
        points = []
        for values in itertools.product(*(dict.fromkeys(axis.values) for axis in self.axes)):
            point = dict(zip(first, values, strict=True))
            if sum(point[name] != first[name] for name in self.singly) <= 1:
                points.append(self._with_meanings(point))
        return points

    def _with_meanings(self, point: dict[str, str]) -> dict[str, str]:
        meanings = {axis.name: axis.meaning(point[axis.name], point) for axis in self.axes if axis.meaning}
        return point | meanings
