"""Houlsby adapters in a text and an image encoder, fused (IISAN, the Adapter rows of its tables; `houlsby`).

    python run_adapter.py --dataset ../../../Dataset/Scientific

The user encoder, the projections and the fusion also train, because there is no source domain.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("houlsby", item_tower="multimodal")
