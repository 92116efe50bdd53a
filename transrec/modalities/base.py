"""What a modality is, and the registry."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from transrec.data.dataset import Dataset
from transrec.data.features import Features
from transrec.models import backbone
from transrec.models.held import hold
from transrec.models.towers import BackboneTower, StoredTower, Tower
from transrec.options import Options
from transrec.registry import Registry
from transrec.training.distributed import World


@dataclass(frozen=True)
class ModalityOptions(Options):
    """Flags of a modality."""

    def declared(self) -> dict[str, Any]:
        """Values of flags that are left open, by name, which the files that other flags name declare.

        A new run takes them, and keeps them in its options.

        Raises TransrecError for a file that is malformed.
        """
        return {}


class Modality:
    """Something that items are read by: its features and its tower.

    Args:
        options: the values of its flags.
        dataset: the dataset's folder.

    Attributes:
        Options: the dataclass of its flags.
        name: what it is called in --modalities.
        reads: what it reads of an item, for people, in the plural.
        encoder: where its backbone is; "" for a modality without one.
    """

    name: ClassVar[str]
    reads: ClassVar[str]
    Options: type[ModalityOptions] = ModalityOptions
    encoder: str = ""

    def __init__(self, options: Any, dataset: str | Path = ""):
        self.options, self.dataset = options, Path(dataset)

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> Features:
        """What its tower is given, of the catalogue rows int [n], which are items 1..n.

        Raises TransrecError when the dataset lacks it, or holds it damaged.
        """
        raise NotImplementedError

    def files(self, features: Features) -> dict[str, str]:
        """Hashes of the files that the features come from beside the dataset's own, by path."""
        return {}

    def announce(self, log: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Say of a run how items are read, where that is not plain from its flags."""

    @property
    def sizes(self) -> dict[str, Any]:
        """What decides what the weights of a recommender mean, by name; a checkpoint is read only where it is equal."""
        return {}

    def check_length(self, extra_tokens: int) -> None:
        """Raise TransrecError where what it reads, with so many tokens more, is longer than its backbone takes."""

    def tower(self, embedding_dim: int, known: Mapping[str, Any], seed: Callable[[str], None], draw: bool) -> Tower:
        """Its tower.

        Args:
            known: `item_count`, n of the items 1..n; `encoder_dtype`, what a backbone's weights are held in if not in
                float32; `spread`, as `load_backbone` takes it; of a finished run also what `sizes` were when it
                trained.
            seed: called with the name of a part before anything of it is drawn at random.
            draw: draw the backbone's weights instead of loading its pretrained ones.

        Raises TransrecError for a backbone that is missing, damaged or unfit.
        """
        raise NotImplementedError


class BackboneModality(Modality):
    """A modality that a backbone reads.

    Attributes:
        main_input: the main input of its backbones, as transformers names it; text and image have theirs.
    """

    main_input: ClassVar[str] = ""

    @cached_property
    def config(self):
        """The backbone's configuration. Raises TransrecError when there is none."""
        return backbone.load_config(self.encoder, self.name)

    @property
    def depth(self) -> int:
        """The number of the backbone's layers; it has one state more."""
        return self.config.num_hidden_layers

    @property
    def parameter_count(self) -> int:
        """Parameters of its backbone."""
        with torch.device("meta"):
            model = backbone.build_backbone(self.config, self.name, self.main_input)
        return sum(parameter.numel() for parameter in model.parameters())

    def tower(
        self, embedding_dim: int, known: Mapping[str, Any], seed: Callable[[str], None], draw: bool
    ) -> BackboneTower:
        seed(f"{self.name} backbone")
        dtype = known.get("encoder_dtype", torch.float32)
        if draw:
            weights = backbone.build_backbone(self.config, self.name, self.main_input)
        else:
            weights = backbone.load_backbone(self.encoder, self.name, self.main_input, dtype, known.get("spread"))
        hold(weights, dtype)
        seed(f"{self.name} projection")
        return self.tower_of(weights, embedding_dim)

    def tower_of(self, weights: nn.Module, embedding_dim: int) -> BackboneTower:
        """The tower that runs a given backbone."""
        raise NotImplementedError

    def stored_tower(self, embedding_dim: int, seed: Callable[[str], None]) -> StoredTower:
        """The tower that is given states of the backbone, computed before."""
        seed(f"{self.name} projection")
        return StoredTower(self.name, embedding_dim, self.config.hidden_size, 1 + self.depth, self.depth)

    def check_states(self) -> None:
        """Raise TransrecError where no state of a layer stands for an item, or where each step has others."""

    @property
    def pooling(self) -> str:
        """What stands for an item in a layer's output."""
        raise NotImplementedError

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to its inputs before the backbone sees them, in plain values; nothing by default."""
        return {}


MODALITIES: Registry[Modality] = Registry("modality", Modality, __package__, flag="modalities", several=True)
register, get, names = MODALITIES.register, MODALITIES.get, MODALITIES.names
