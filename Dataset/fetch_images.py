"""Download the images of a dataset whose items come with links.

    python Dataset/fetch_images.py --links Dataset/Mine/images.tsv --out Dataset/Mine/images

--links is a table with the columns item_id and url; an item on several lines has several addresses, of which the first
that gives an image is taken. Images are JPEG, PNG or WebP files, named by item id as build_lmdb.py expects them. Each
is decoded once, so that no page, cut-off or damaged file is taken for one.

OUT/fetch_report.tsv says of every item what was fetched from where, or why not; if some failed the exit status is 1.
Stopped or given again, the same command fetches what is not there yet.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.data.images.download import Limits
from transrec.data.images.fetch import fetch_images
from transrec.paths import resolve

if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--links", type=Path, required=True, help="table of links: item_id<TAB>url per line")
    parser.add_argument("--out", type=Path, required=True, help="folder of images, made if it is not there")
    parser.add_argument("--jobs", type=int, default=Limits.jobs, help="downloads at a time")
    parser.add_argument("--rate", type=float, default=Limits.rate, help="most requests per second to each host")
    parser.add_argument("--timeout", type=float, default=Limits.timeout, help="seconds after which a try is given up")
    parser.add_argument(
        "--retries", type=int, default=Limits.retries, help="further tries after one that a later may mend"
    )
    parser.add_argument("--max_mib", type=float, default=Limits.max_mib, help="most MiB of an image's file")
    parser.add_argument(
        "--allow_private", action="store_true", help="links may lead to this machine and its own network"
    )
    with reporting():
        arguments = vars(parser.parse_args())
        links, out = resolve(arguments.pop("links")), arguments.pop("out")
        fetch_images(links, out, Limits(**arguments), progress=True)
