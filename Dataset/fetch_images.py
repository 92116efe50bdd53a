"""Download the images of a dataset whose items have links to images.

    python Dataset/fetch_images.py --links Dataset/Mine/images.tsv --out Dataset/Mine/images

--links is a table with the columns item_id and url. An item may have several lines; its first address that gives an
image is used. Images are JPEG, PNG or WebP files, named by item id as build_lmdb.py expects them. Each one is decoded
once, so that web pages and truncated or damaged files are not mistaken for images.

OUT/fetch_report.tsv says for each item what was fetched from where, or why fetching failed. If any item failed, the
exit status is 1. When run again, also after an interruption, the same command fetches only the missing images.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.data.images.download import Limits
from transrec.data.images.fetch import fetch_images
from transrec.paths import resolve

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--links", type=Path, required=True, help="table of links with item_id<TAB>url per line")
    parser.add_argument("--out", type=Path, required=True, help="folder for the images, created if it does not exist")
    parser.add_argument("--jobs", type=int, default=Limits.jobs, help="number of simultaneous downloads")
    parser.add_argument("--rate", type=float, default=Limits.rate, help="maximum requests per second to each host")
    parser.add_argument(
        "--timeout", type=float, default=Limits.timeout, help="seconds after which a download attempt is given up"
    )
    parser.add_argument(
        "--retries", type=int, default=Limits.retries, help="further attempts after a temporary failure"
    )
    parser.add_argument("--max_mib", type=float, default=Limits.max_mib, help="maximum size of an image file in MiB")
    parser.add_argument("--allow_private", action="store_true", help="allow links to this machine and its own network")
    with reporting():
        arguments = vars(parser.parse_args())
        links, out = resolve(arguments.pop("links")), arguments.pop("out")
        fetch_images(links, out, Limits(**arguments), progress=True)
