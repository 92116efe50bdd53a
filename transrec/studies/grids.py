"""The grids of the papers' studies, which scripts in `scripts/` and `scripts/reproduce/` adapt and run."""

from collections.abc import Mapping

from transrec import methods
from transrec.models.backbone import load_config
from transrec.studies.grid import Axis, Grid, encoder_axis

# The ways in which IISAN's programs run it, by their names in tables. Uncached IISAN trains with BERT's dropout.
IISAN_RUNS = {
    "iisan_uncached": {"method": "iisan", "cached": "no", "backbone_dropout": "on"},
    "iisan_cached": {"method": "iisan", "cached": "yes", "state_dtype": "fp16"},
    "iisan_versa": {"method": "iisan", "cached": "yes", "state_dtype": "fp16", "narrow_end": "true"},
}
LAYER_CHOICES = {
    "every_second": lambda blocks: range((blocks - 1) % 2, blocks, 2),
    "all": range,
    "upper_half": lambda blocks: range(blocks // 2, blocks),
    "every_third": lambda blocks: range((blocks - 1) % 3, blocks, 3),
}


def _layers(value: str, point: Mapping[str, str]) -> str:
    """Return the layers of both encoders at a point for one of LAYER_CHOICES; any other value is returned as it is."""
    if value not in LAYER_CHOICES:
        return value
    depths = (load_config(point[f"{kind}_encoder"], kind).num_hidden_layers for kind in ("text", "image"))
    return "/".join(",".join(map(str, LAYER_CHOICES[value](blocks))) for blocks in depths)


METHODS = Grid(
    (
        encoder_axis(),
        Axis("objective", {"text": ("bce", "cpc"), "image": ("bce", "cpc"), "multimodal": ("in_batch",)}),
        Axis("method", tuple(methods.names()), named=IISAN_RUNS),
    )
)
INSERTION = Grid(
    (
        Axis("insert", ("all", "item", "user", "user_first", "user_last")),
        Axis("method", ("houlsby", "parallel")),
        Axis("bottleneck", ("64/16", "16/4", "256/64"), flags=("item_bottleneck", "user_bottleneck")),
        Axis("train_layernorm", ("false", "true")),
    )
)
SCALING = Grid(
    (
        Axis("source_fraction", ("1", "0.5", "0.25", "0.1", "0"), flags=("source.user_fraction",)),
        Axis("target_fraction", ("1", "0.5", "0.25", "0.1"), flags=("target.user_fraction",)),
        Axis("method", ("full", "houlsby", "frozen")),
    ),
    singly=("source_fraction", "target_fraction"),
)
SIDE_NETWORK = Grid(
    (
        Axis("item_tower", ("multimodal", "text", "image")),
        Axis("side_towers", ("intra_inter", "intra", "inter")),
        Axis("side_gates", ("true", "false")),
        Axis("keep_embedding", ("true", "false")),
        Axis("layers", tuple(LAYER_CHOICES), flags=("text_layers", "image_layers"), meaning=_layers),
        Axis("text_encoder", ("bert-base-uncased",)),
        Axis("image_encoder", ("google/vit-base-patch16-224",)),
        Axis("method", ("iisan",), named=IISAN_RUNS),
    ),
    singly=("item_tower", "side_towers", "side_gates", "keep_embedding", "layers", "text_encoder", "image_encoder"),
)
