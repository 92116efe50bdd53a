"""Full fine-tuning of a text and an image encoder, fused (IISAN, the FFT rows of its tables; `full`).

    python run_fft.py --dataset ../../../Dataset/Scientific

Everything trains.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("full", item_tower="multimodal")
