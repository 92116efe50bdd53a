"""Train any method over any modality, with the papers' settings for both (docs/defaults.md).

    python scripts/train.py --method houlsby --item_tower image --dataset Dataset/Amazon --checkpoint RUN

The scripts of Pretraining/ and Downstream/ are this script with a fixed method and modality. Without --method,
everything trains, as in a source model.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt("full")
