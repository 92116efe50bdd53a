"""Train any method over any modality, at the papers' settings for the two (docs/defaults.md).

    python scripts/train.py --method houlsby --item_tower image --dataset Dataset/Amazon --checkpoint RUN

The scripts of Pretraining/ and Downstream/ are this one with a method and a modality chosen. Without --method
everything trains, as a source model does.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("full")
