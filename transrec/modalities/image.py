"""Item images, read by an image backbone (`image`)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transrec.data.dataset import Dataset, find_images
from transrec.data.features import ImageFeatures
from transrec.errors import TransrecError, warn
from transrec.modalities.base import BackboneModality, ModalityOptions, register
from transrec.models import backbone
from transrec.models.backbone import Pooling, Preprocessing, find_backbone, has_cls
from transrec.models.towers import BackboneTower
from transrec.options import flag
from transrec.paths import resolve
from transrec.training.distributed import World


class ImageTower(BackboneTower):
    """Runs an image backbone. Its last state is the output of the last block, before the final LayerNorm.

    An image is read at [CLS], and if the backbone has a LayerNorm for [CLS] alone (CLIP), after that LayerNorm. A
    backbone without [CLS] (SigLIP) is read at its own pooling head, or at the mean of all patches if it has none.

    Args:
        preprocessing: the size and normalisation of the images that the backbone expects.
    """

    modality = "image"

    def __init__(self, backbone: nn.Module, embedding_dim: int, preprocessing: Preprocessing):
        for name, parameter in backbone.named_parameters():
            # It stands for hidden patches, and none is hidden: a parameter without a gradient would stop DDP.
            if name.rpartition(".")[2] == "mask_token":
                parameter.requires_grad_(False)
        super().__init__(backbone, embedding_dim)
        self.size = preprocessing.size
        self.has_cls = has_cls(backbone)
        paths = (path for path, _ in backbone.named_modules())
        self._cls_norm = next((path for path in paths if path.rpartition(".")[2] == "post_layernorm"), None)
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @property
    def example(self) -> tuple[Tensor, ...] | None:
        count = 2 * 3 * self.size**2
        pixels = torch.arange(count).remainder(251).to(torch.uint8).view(2, 3, self.size, self.size)
        return (pixels,) if self.has_cls else None

    def read_out(self, pixels: Tensor) -> Tensor:
        """Return image vectors [N, D] for pixels uint8 [N, 3, S, S] of any S."""
        images = pixels.float() / 255
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.encode((images - self.mean) / self.std)

    def encode(self, pixel_values: Tensor, **options: Tensor) -> Tensor:
        """Return image vectors [N, D] for normalised images float [N, 3, size, size]; `options` go to the backbone."""
        if getattr(self.backbone.config, "mask_ratio", None) == 0:
            # MAE shuffles the patches even if it masks none, which only reorders float sums. Fixed noise prevents it.
            patches = (self.size // self.backbone.config.patch_size) ** 2
            options["noise"] = torch.arange(patches, device=pixel_values.device).expand(len(pixel_values), -1)
        output = self.backbone(pixel_values=pixel_values, **options)
        if not self.has_cls:
            pooled = getattr(output, "pooler_output", None)
            return self.pool(output.last_hidden_state) if pooled is None else pooled
        cls = output.last_hidden_state[:, 0]
        return self.backbone.get_submodule(self._cls_norm)(cls) if self._cls_norm else cls

    def pool(self, hidden: Tensor, *inputs: Tensor) -> Tensor:
        return super().pool(hidden) if self.has_cls else hidden.mean(1)


@dataclass(frozen=True)
class ImageOptions(ModalityOptions):
    _minimum: ClassVar[dict[str, float]] = {"mask_ratio": 0, "image_workers": 0}
    _below: ClassVar[dict[str, float]] = {"mask_ratio": 1}

    image_encoder: str = flag(
        "google/vit-base-patch16-224",
        "Image backbone: a folder, a name in pretrained_models/, or a hub name.",
        absolute=find_backbone,
    )
    mask_ratio: float = flag(0.0, "Share of the patches that MAE masks at random in every forward pass.")
    images: str | None = flag(
        None, "Image store made by build_lmdb.py (default: the only *.lmdb in the dataset folder).", absolute=resolve
    )
    image_workers: int = flag(
        4, "Number of processes that prefetch images, at most one per CPU; 0: none.", affects_results=False
    )


@register("image")
class Image(BackboneModality):
    name: ClassVar[str] = "image"
    reads: ClassVar[str] = "images"
    Options = ImageOptions
    options: ImageOptions

    @property
    def encoder(self) -> str:
        return self.options.image_encoder

    def check_states(self) -> None:
        if ratio := self.options.mask_ratio:
            raise TransrecError(f"--cached yes: not with --mask_ratio {ratio:g}, whose states differ in every step")

    def backbone_tower(self, weights: nn.Module, embedding_dim: int) -> ImageTower:
        backbone.set_mask_ratio(weights, self.options.mask_ratio)
        preprocessing = backbone.load_preprocessing(self.encoder, weights.config)
        backbone.check_image_size(weights, preprocessing, self.encoder)
        return ImageTower(weights, embedding_dim, preprocessing)

    def features(self, dataset: Dataset, rows: np.ndarray, world: World) -> ImageFeatures:
        store = find_images(dataset.folder, self.options.images)
        ids = [dataset.catalog.ids[row] for row in rows]
        store.check(ids)
        if world.is_main and (grey := len(set(ids) & set(store.header.grey))):
            warn(f"{grey:,} of {len(ids):,} items have a grey image in {store.path}")
        return ImageFeatures(store, ids, world.device, self.options.image_workers)

    def files(self, features: ImageFeatures) -> dict[str, str]:
        return {str(features.store.path): features.store.content_hash}

    @property
    def pooling(self) -> Pooling:
        return backbone.image_pooling(self.config)

    @property
    def preprocessing(self) -> dict[str, Any]:
        return vars(backbone.load_preprocessing(self.encoder, self.config)) | {"mask_ratio": self.options.mask_ratio}
