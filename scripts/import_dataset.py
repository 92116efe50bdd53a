"""Import a dataset from its publisher's raw files into a dataset folder that every script here reads.

    python scripts/import_dataset.py auto Downloads/MINDsmall_train --out Dataset/MINDsmall
    python scripts/import_dataset.py table ratings.csv --user user_id --item item_id --time timestamp --out Dataset/Mine

The first argument is the format; `auto` detects it and says why. The new folder holds users.tsv, items.tsv, the times
and ratings in interactions.parquet, and dataset.json, which records what was read, what was dropped, and why. It needs
pip install 'transrec[import]'. Dataset/README.md has a command for each well-known dataset.
"""

from transrec.data.importing.command import run

if __name__ == "__main__":
    run()
