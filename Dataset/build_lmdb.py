"""Build the image store of a dataset: one small RGB image per item, in one LMDB file.

    python Dataset/build_lmdb.py --items Dataset/Mine/items.tsv --images photos.zip --out Dataset/Mine/images.lmdb
    python Dataset/build_lmdb.py --items Dataset/Mine/items.tsv --import_original old.lmdb --out Dataset/Mine/new.lmdb

--images is a folder (searched at all depths) or a zip of JPEG, PNG and WebP files named by item id. Images are rotated
by their EXIF orientation, transparency becomes white, and each image is squeezed to SIZE x SIZE pixels.

Unusable images (missing, unreadable, truncated, huge, several files for one id; also animated, CMYK, palette or 16-bit
images without --convert) are listed in OUT.report.tsv. The store is then not finished and the exit status is 1. When
run again after an interruption or with mended images, the same command continues with the remaining images.
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
    parser.add_argument("--items", type=Path, required=True, help="items file with item_id<TAB>title per line")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, help="folder or zip of images (this or --import_original is required)")
    source.add_argument(
        "--import_original",
        type=Path,
        help="instead of --images: an LMDB of the original Adapter4Rec or IISAN programs",
    )
    parser.add_argument("--out", type=Path, required=True, help="file of the new store")
    parser.add_argument("--size", type=int, default=224, help="image size in pixels per side")
    parser.add_argument(
        "--store", choices=KINDS, default="jpeg", help="how images are stored; raw is larger but faster to read"
    )
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality, 1 to 100")
    parser.add_argument(
        "--workers", type=int, default=usable_cpus(), help="number of processes (default: one per usable CPU)"
    )
    parser.add_argument("--convert", action="store_true", help="accept animated, CMYK, palette and 16-bit images too")
    parser.add_argument("--allow_missing", action="store_true", help="replace unusable images with grey ones")
    parser.add_argument("--overwrite", action="store_true", help="replace a different store at --out")
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
