"""BitFit in a text and an image encoder, fused (IISAN, the BitFit rows of its tables; `bitfit`).

    python run_bitfit.py --dataset ../../../Dataset/Scientific

The user encoder, the projections and the fusion also train, because there is no source domain.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("bitfit", item_tower="multimodal")
