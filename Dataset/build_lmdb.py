"""Make the image store of a dataset: one small RGB image per item, in one LMDB file.

    python Dataset/build_lmdb.py --items Dataset/Mine/items.tsv --images photos.zip --out Dataset/Mine/images.lmdb
    python Dataset/build_lmdb.py --items Dataset/Mine/items.tsv --import_original old.lmdb --out Dataset/Mine/new.lmdb

--images is a folder (with all below it) or a zip of JPEG, PNG and WebP files named by item id. Images are turned as
their EXIF orientation says, transparency becomes white, and each is squeezed to SIZE x SIZE pixels.

Images that cannot be used (missing, unreadable, truncated, huge, several files of one id; animated, CMYK, palette or
16-bit ones without --convert) are listed in OUT.report.tsv; the store is then not finished and the exit status is 1.
Stopped or mended, the same command continues with what is left.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.cpus import usable_cpus
from transrec.data.images.build import build_store
from transrec.data.images.pictures import KINDS
from transrec.paths import resolve

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--items", type=Path, required=True, help="items file: item_id<TAB>title per line")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder or zip of images (this or --import_original is required)")
    source.add_argument("--import_original", type=Path, help="instead: LMDB of the programs of Adapter4Rec or IISAN")
    parser.add_argument("--out", type=Path, required=True, help="the store, a file")
    parser.add_argument("--size", type=int, default=224, help="pixels per side")
    parser.add_argument("--store", choices=KINDS, default="jpeg", help="raw: larger, faster to read")
    parser.add_argument("--quality", type=int, default=95, help="of JPEG")
    parser.add_argument(
        "--workers", type=int, default=usable_cpus(), help="processes (default: one per CPU that may be used)"
    )
    parser.add_argument("--convert", action="store_true", help="take animated, CMYK, palette and 16-bit images too")
    parser.add_argument("--allow_missing", action="store_true", help="grey images stand in for unusable ones")
    parser.add_argument("--overwrite", action="store_true", help="replace another store at --out")
    with reporting():
        arguments = parser.parse_args()
        build_store(
            resolve(arguments.items),
            resolve(arguments.import_original or arguments.images),
            arguments.out,
            arguments.size,
            arguments.store,
            arguments.workers,
            quality=arguments.quality,
            original=arguments.import_original is not None,
            convert=arguments.convert,
            allow_missing=arguments.allow_missing,
            overwrite=arguments.overwrite,
            progress=True,
        )
