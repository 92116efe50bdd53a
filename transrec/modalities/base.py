"""Base classes and registry of modalities."""

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
from transrec.models.held import store_in_dtype
from transrec.models.towers import BackboneTower, StoredTower, Tower
from transrec.options import Options
from transrec.registry import Registry
from transrec.training.distributed import World


@dataclass(frozen=True)
class ModalityOptions(Options):
    """Flags of a modality."""

    def declared_flags(self) -> dict[str, Any]:
        """Return values for flags that were left open, by name, as declared in the files that other flags name.

        A new run adopts these values and stores them in its options.

        Raises TransrecError for a malformed file.
        """
        return {}


class Modality:
    """A kind of content that represents items. It provides the features and the tower that reads them.

    Args:
        options: the values of the modality's flags.
        dataset: the dataset folder.

    Attributes:
        Options: the dataclass of the modality's flags.
        name: the name of the modality in --modalities.
        reads: a plural noun for the content that it reads, for messages.
        encoder: the folder or name of its backbone; "" for a modality without one.
    """

    name: ClassVar[str]
    reads: ClassVar[str]
    Options: type[ModalityOptions] = ModalityOptions
    encoder: str = ""

    def __init__(self, options: Any, dataset: str | Path = ""):
        self.options, self.dataset = options, Path(dataset)

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> Features:
        """Return the features that the tower reads, for the catalogue rows int [n], which are items 1..n.

        Raises TransrecError if the dataset lacks the content, or if the content is damaged.
        """
        raise NotImplementedError

    def files(self, features: Features) -> dict[str, str]:
        """Return hashes, by path, of the files that the features come from, apart from the dataset's own files."""
        return {}

    def announce(self, log: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Log how a run reads items, if its flags do not make that plain."""

    @property
    def sizes(self) -> dict[str, Any]:
        """Settings, by name, that determine what the weights mean; a checkpoint loads only if they are equal."""
        return {}

    def check_length(self, extra_tokens: int) -> None:
        """Raise TransrecError if inputs with `extra_tokens` more tokens are longer than the backbone accepts."""

    def tower(self, embedding_dim: int, known: Mapping[str, Any], seed: Callable[[str], None], draw: bool) -> Tower:
        """Return the modality's tower.

        Args:
            known: `item_count`, n of the items 1..n; `encoder_dtype`, the dtype that a backbone's weights are held in
                (default: float32); `spread`, as in `load_backbone`; for a finished run also the values that `sizes`
                had when it trained.
            seed: called with the name of a part before any of its weights are drawn at random.
            draw: draw the backbone's weights at random instead of loading the pretrained ones.

        Raises TransrecError for a backbone that is missing, damaged or unsuitable.
        """
        raise NotImplementedError


class BackboneModality(Modality):
    """A modality whose content is read by a backbone.

    Attributes:
        main_input: the main input of its backbones, as transformers names it; text and image need not set it.
    """

    main_input: ClassVar[str] = ""

    @cached_property
    def config(self):
        """The backbone's configuration. Raises TransrecError if there is none."""
        return backbone.load_config(self.encoder, self.name)

    @property
    def depth(self) -> int:
        """The number of layers of the backbone; there is one more hidden state than layers."""
        return self.config.num_hidden_layers

    @property
    def parameter_count(self) -> int:
        """The number of parameters of the backbone."""
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
        store_in_dtype(weights, dtype)
        seed(f"{self.name} projection")
        tower = self.backbone_tower(weights, embedding_dim)
        tower.skip_unread_tokens()
        return tower

    def backbone_tower(self, weights: nn.Module, embedding_dim: int) -> BackboneTower:
        """Return the tower that runs the backbone `weights`."""
        raise NotImplementedError

    def stored_tower(self, embedding_dim: int, seed: Callable[[str], None]) -> StoredTower:
        """Return the tower that reads precomputed hidden states of the backbone."""
        seed(f"{self.name} projection")
        return StoredTower(self.name, embedding_dim, self.config.hidden_size, 1 + self.depth, self.depth)

    def check_states(self) -> None:
        """Raise TransrecError if no layer's state represents an item, or if the states differ from step to step."""

    @property
    def pooling(self) -> str:
        """The pooling of a layer's output into one vector of an item."""
        raise NotImplementedError

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Plain values that describe how inputs are processed before the backbone sees them; empty by default."""
        return {}


MODALITIES: Registry[Modality] = Registry("modality", Modality, __package__, flag="modalities", several=True)
register, get, names = MODALITIES.register, MODALITIES.get, MODALITIES.names
