"""Item vectors computed elsewhere (`vector`), read by a tower without a backbone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transrec.data.dataset import Dataset
from transrec.data.states import StateFeatures
from transrec.data.vectors import IDS, VectorFile
from transrec.modalities.base import Modality, ModalityOptions, register
from transrec.models.towers import StoredTower
from transrec.options import flag
from transrec.paths import file_sha256, resolve
from transrec.training.distributed import World

DEFAULT = "features.npy"


@dataclass(frozen=True)
class VectorOptions(ModalityOptions):
    vectors: str | None = flag(
        None,
        "File of item vectors computed elsewhere, for --modalities vector: .npy or .safetensors next to an ids.txt, or "
        ".parquet (default: features.npy in the dataset folder).",
        absolute=resolve,
    )


@register("vector")
class Vector(Modality):
    name: ClassVar[str] = "vector"
    reads: ClassVar[str] = "vectors"
    Options = VectorOptions
    options: VectorOptions

    @cached_property
    def file(self) -> VectorFile:
        """The file given by --vectors, or the dataset folder's own. Raises TransrecError as `VectorFile` does."""
        path = self.options.vectors
        return VectorFile(Path(path) if path else self.dataset / DEFAULT)

    @property
    def sizes(self) -> dict[str, Any]:
        """K, the number of states, and D, their width."""
        return {"vectors": list(self.file.states.shape[1:])}

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> StateFeatures:
        places = self.file.rows_of([dataset.catalog.ids[row] for row in rows])
        return StateFeatures(self.file, places, world.device)

    def files(self, features: StateFeatures) -> dict[str, str]:
        paths = [self.file.path] + [path for path in [self.file.path.with_name(IDS)] if path.exists()]
        return {str(path): file_sha256(path) for path in paths}

    def tower(
        self, embedding_dim: int, known: Mapping[str, Any], seed: Callable[[str], None], draw: bool
    ) -> StoredTower:
        states, width = known.get("vectors") or self.sizes["vectors"]
        seed("vector projection")
        return StoredTower("vector", embedding_dim, width, states)
