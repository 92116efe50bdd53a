"""IISAN-Versa: encoders that differ in depth and width, and the number of layers that are read (IISAN-Versa).

    python scripts/reproduce/iisan_versa.py --seeds 0 1 2 --workers 8

--side_layers sets the number of layers that are read from each encoder. It is not known which LLM the paper used;
choose others with --encoder TEXT,IMAGE. The released programs average over a title's tokens: --text_pooling mean.
"""

from transrec.studies import Axis, Grid, main
from transrec.studies.grids import METHODS
from transrec.studies.papers import IISAN_VERSA, Table

ENCODERS = tuple(f"{text},google/vit-base-patch16-224" for text in ("bert-base-uncased", "meta-llama/Meta-Llama-3-8B"))
VERSA = METHODS.with_values(encoder=ENCODERS, method=("iisan_versa",))
GRID = Grid((*VERSA.axes, Axis("side_layers", ("6",))))


if __name__ == "__main__":
    main(__doc__, GRID, modality="multimodal", table=Table(IISAN_VERSA, "versa"))
