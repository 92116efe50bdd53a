"""Ablations of IISAN: towers, gates, layers, modalities (IISAN, its tables of ablations).

    python scripts/study_iisan.py --target Dataset/Scientific --seeds 0 1 2 --workers 8

Each axis is varied at the first values of the others. --layers takes the layers of the text and of the image encoder,
like 1,3,5,7,9,11/1,3,5,7,9,11. Every choice of layers keeps its hidden states in a folder of its own.
"""

from transrec.reports.study import Axis, Grid, main


def both(layers: str) -> str:
    return f"{layers}/{layers}"


GRID = Grid(
    (
        Axis("item_tower", ("multimodal", "text", "image")),
        Axis("side_towers", ("intra_inter", "intra", "inter")),
        Axis("side_gates", ("true", "false")),
        Axis("keep_embedding", ("true", "false")),
        Axis(
            "layers",
            (
                both("1,3,5,7,9,11"),
                both("0,1,2,3,4,5,6,7,8,9,10,11"),
                both("6,7,8,9,10,11"),
                both("2,5,8,11"),
            ),
            flags=("text_layers", "image_layers"),
        ),
        Axis("text_encoder", ("bert-base-uncased",)),
        Axis("image_encoder", ("google/vit-base-patch16-224",)),
        Axis("method", ("iisan",)),
    ),
    singly=("item_tower", "side_towers", "side_gates", "keep_embedding", "layers", "text_encoder", "image_encoder"),
)

if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal")
