"""Browse the recommendations of one to three finished runs in a web browser, served by this computer for itself.

    python scripts/browse.py --run RUN --run OTHER

Find a user to see the history, the target and the top items of each run side by side, with titles, pictures and marked
hits. Type a history, or build it by searching titles. Find an item's nearest neighbours. The runs must have the same
dataset and split. Nothing is loaded from the network. Ctrl-C stops the server.
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
    # Open the port first, so that a taken port is reported before anything is computed.
    with Server(arguments.host, arguments.port) as server:
        if not server.is_local:
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
    parser.add_argument("--k", type=int, default=10, help="number of items per run (default: 10)")
    parser.add_argument(
        "--images", help="store, folder or zip of pictures (default: the one that a run reads, or the dataset's)"
    )
    parser.add_argument("--dataset", type=Path, help="folder of the runs' dataset, if it has moved or grown")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this computer only)"
    )
    parser.add_argument("--port", type=int, default=8008, help="port to listen on; 0: any free port (default: 8008)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=[], help="plugins that the runs were started with"
    )
    with reporting():
        main(parser.parse_args())
