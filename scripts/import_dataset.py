"""Import a dataset as its publisher gives it out: a folder of raw files becomes one that every script here reads.

    python scripts/import_dataset.py auto Downloads/MINDsmall_train --out Dataset/MINDsmall
    python scripts/import_dataset.py table ratings.csv --user user_id --item item_id --time timestamp --out Dataset/Mine

The first word is the format; `auto` guesses it and says why. The new folder holds users.tsv, items.tsv, the times and
ratings in interactions.parquet, and dataset.json, which says what was read, dropped and why. It needs
pip install 'transrec[import]'. Dataset/README.md has a command for each well-known dataset.
"""

from transrec.data.importing.command import run

if __name__ == "__main__":
    run()
