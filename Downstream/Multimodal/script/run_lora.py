"""LoRA in a text and an image encoder, fused (IISAN, the LoRA rows of its tables; `lora`).

    python run_lora.py --dataset ../../../Dataset/Scientific

The user encoder, the projections and the fusion also train, because there is no source domain.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("lora", item_tower="multimodal")
