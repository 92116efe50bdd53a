"""Projections, fusion and user encoder over frozen text and image encoders (`frozen`).

    python run_frozen.py --dataset ../../../Dataset/Scientific

The backbones keep their pretrained weights.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("frozen", item_tower="multimodal")
