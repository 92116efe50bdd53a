"""Sounds of items, encoded by a spectrogram transformer (`audio`; AST, Gong et al., Interspeech 2021).

python finetune.py --plugin docs/adding/audio.py --modalities audio --audio_encoder FOLDER ...

An example of a modality with its own flags and its own backbone. As with texts and images, it works alone or together
with other modalities, under every method, and its states are computed once if nothing in the backbone is trained.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from transrec.data.dataset import Dataset
from transrec.data.states import StateFeatures
from transrec.data.vectors import IDS, VectorFile
from transrec.errors import TransrecError
from transrec.modalities import BackboneModality, ModalityOptions, register
from transrec.models.backbone import find_backbone
from transrec.models.towers import BackboneTower
from transrec.options import flag
from transrec.paths import file_sha256, resolve
from transrec.training.distributed import World

DEFAULT = "spectrograms.npy"


class AudioTower(BackboneTower):
    """Runs a spectrogram transformer and pools its output as the mean of the tokens [CLS] and [DISTILLATION]."""

    modality = "audio"

    def read_out(self, spectrograms: Tensor) -> Tensor:
        """Encode spectrograms: float16 or float32 [N, frames, mels] -> [N, D]."""
        return self.pool(self.backbone(input_values=spectrograms.float()).last_hidden_state)

    def pool(self, hidden: Tensor, *inputs: Tensor) -> Tensor:
        return hidden[:, :2].mean(1)


class AudioFeatures(StateFeatures):
    """Spectrograms [frames, mels] of the items, read from a memory-mapped file."""

    def __init__(self, file: VectorFile, rows: np.ndarray, device: torch.device):
        super().__init__(file, rows, device, "disk")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """SHA-256 of the file and of the rows that belong to the items."""
        return hashlib.sha256(file_sha256(self.file.path).encode() + self.rows.tobytes()).hexdigest()


@dataclass(frozen=True)
class AudioOptions(ModalityOptions):
    audio_encoder: str = flag(
        "MIT/ast-finetuned-audioset-10-10-0.4593", "Audio backbone: folder or hub name.", absolute=find_backbone
    )
    spectrograms: str | None = flag(
        None,
        f"Normalised log-mel spectrograms [items, frames, mels], .npy beside an ids.txt (default: {DEFAULT} of the "
        f"dataset folder).",
        absolute=resolve,
    )


@register("audio")
class Audio(BackboneModality):
    name: ClassVar[str] = "audio"
    reads: ClassVar[str] = "sounds"
    main_input: ClassVar[str] = "input_values"
    Options = AudioOptions
    options: AudioOptions
    pooling = "mean"

    @property
    def encoder(self) -> str:
        return self.options.audio_encoder

    @cached_property
    def file(self) -> VectorFile:
        """The file given by --spectrograms, or that of the dataset folder.

        Raises TransrecError if its shape does not fit the backbone.
        """
        path = self.options.spectrograms
        file = VectorFile(Path(path) if path else self.dataset / DEFAULT)
        shape, expected = (
            file.states.shape[1:],
            [getattr(self.config, name, None) for name in ("max_length", "num_mel_bins")],
        )
        # A backbone that reads something other than spectrograms is reported when it is loaded.
        if None not in expected and list(shape) != expected:
            raise TransrecError(
                f"{file.path}: is of {list(shape)} frames and mels, and {self.encoder} takes {expected}"
            )
        return file

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> AudioFeatures:
        file_rows = self.file.rows_of([dataset.catalog.ids[row] for row in rows])
        return AudioFeatures(self.file, file_rows, world.device)

    def files(self, features: AudioFeatures) -> dict[str, str]:
        paths = (features.file.path, features.file.path.with_name(IDS))
        return {str(path): file_sha256(path) for path in paths}

    def backbone_tower(self, weights: nn.Module, embedding_dim: int) -> AudioTower:
        return AudioTower(weights, embedding_dim)
