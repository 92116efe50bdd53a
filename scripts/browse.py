"""Look at what one to three finished runs recommend, on pages that this computer shows to its own browser.

    python scripts/browse.py --run RUN --run OTHER

Find a user: history, target and the best items of each run stand side by side, with titles and pictures, hits marked.
Type a history, or put it together by titles. Find an item's neighbours. The runs must be over the same dataset and
split. Nothing is loaded from the network. Ctrl-C ends it.
"""

from pathlib import Path

from transrec.arguments import Parser
from transrec.command import reporting
from transrec.errors import printable, warn
from transrec.finished import load_run
from transrec.reports.browse import Browser
from transrec.reports.serving import Server
from transrec.training.distributed import start


def main(arguments) -> None:
    # A port that is taken is told before anything is computed.
    with Server(arguments.host, arguments.port) as server:
        if not server.only_here:
            port = server.server_address[1]
            warn(f"--host {arguments.host}: anyone who can reach this computer at port {port} sees the data")
        device = start(arguments.device).device
        runs = [load_run(run, arguments.plugin, arguments.dataset).to(device) for run in arguments.run]
        server.answer = Browser(runs, arguments.k, arguments.images).answer
        for run in runs:
            _ = run.embeddings
        print(printable(f"page: {server.url}"), flush=True)
        server.serve_forever()


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument(
        "--run", type=Path, action="append", required=True, help="folder of a finished run; up to three"
    )
    parser.add_argument("--k", type=int, default=10, help="how many items of each run (default: 10)")
    parser.add_argument(
        "--images", help="store, folder or zip of pictures (default: what a run reads, or the dataset's)"
    )
    parser.add_argument("--dataset", type=Path, help="folder of the runs' dataset, where it has moved or grown")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this computer alone)")
    parser.add_argument("--port", type=int, default=8008, help="0 is any that is free (default: 8008)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--plugin", nargs="+", default=[], help="the plugins that the runs were started with")
    with reporting():
        main(parser.parse_args())
