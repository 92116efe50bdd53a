"""Ablations of IISAN: towers, gates, layers, modalities (IISAN, its tables of ablations).

    python scripts/study_iisan.py --target Dataset/Scientific --seeds 0 1 2 --workers 8

Each axis is varied at the first values of the others. --layers takes the layers of the text and of the image encoder,
like 1,3,5,7,9,11/1,3,5,7,9,11, or names a choice that fits however many layers they have.
"""

from collections.abc import Mapping

from transrec.models.backbone import load_config
from transrec.studies import Axis, Grid, main

CHOICES = {
    "every_second": lambda blocks: range((blocks - 1) % 2, blocks, 2),
    "all": range,
    "upper_half": lambda blocks: range(blocks // 2, blocks),
    "every_third": lambda blocks: range((blocks - 1) % 3, blocks, 3),
}


def layers(value: str, point: Mapping[str, str]) -> str:
    """The layers that a choice means for the encoders of a point of the grid; others stand for themselves."""
    if value not in CHOICES:
        return value
    depths = (load_config(point[f"{kind}_encoder"], kind).num_hidden_layers for kind in ("text", "image"))
    return "/".join(",".join(map(str, CHOICES[value](blocks))) for blocks in depths)


GRID = Grid(
    (
        Axis("item_tower", ("multimodal", "text", "image")),
        Axis("side_towers", ("intra_inter", "intra", "inter")),
        Axis("side_gates", ("true", "false")),
        Axis("keep_embedding", ("true", "false")),
        Axis("layers", tuple(CHOICES), flags=("text_layers", "image_layers"), meaning=layers),
        Axis("text_encoder", ("bert-base-uncased",)),
        Axis("image_encoder", ("google/vit-base-patch16-224",)),
        Axis("method", ("iisan",)),
    ),
    singly=("item_tower", "side_towers", "side_gates", "keep_embedding", "layers", "text_encoder", "image_encoder"),
)

if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal")
