"""A small web server for pages that are computed on request."""

import errno
import ipaddress
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from transrec.errors import TransrecError, file_error

HIGHEST_PORT = 65535
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    # A meta element in the page cannot set frame-ancestors.
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class Server(ThreadingTCPServer):
    """A server that listens as soon as it is created and answers inside `serve_forever`, one page after the other.

    Args:
        host: name or address to listen on.
        port: port to listen on; 0 picks any free port.

    Attributes:
        answer: function from an address to the HTTP status and the page; set it before `serve_forever`.

    Raises TransrecError for a port that is taken or not allowed, and for a host that is not this computer's.
    """

    daemon_threads = True
    allow_reuse_address = True
    answer: Callable[[str], tuple[int, str]]

    def __init__(self, host: str, port: int) -> None:
        if not 0 <= port <= HIGHEST_PORT:
            raise TransrecError(f"--port {port}: must be from 0, any that is free, to {HIGHEST_PORT}")
        self.answer_lock = threading.Lock()
        try:
            family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__((str(place[0]), int(place[1])), _Handler)
        except (socket.gaierror, UnicodeError) as error:
            raise TransrecError(f"--host {host}: is not a name or address of this computer ({error})") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise TransrecError(f"--port {port}: is taken; give another, or 0 for any that is free") from error
            raise file_error(error, f"--host {host} --port {port}", "give another") from error
        self.is_local = ipaddress.ip_address(str(self.server_address[0])).is_loopback
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser may close the connection before it has the whole page.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "transrec", ""
    # Seconds until a silent connection is closed.
    timeout = 60

    def do_GET(self) -> None:
        if self.server.is_local and not _is_local_host(self.headers.get("Host", "")):
            # DNS rebinding: a page of another site, whose name resolves to this computer, must not read the data.
            self._send(403, "<!DOCTYPE html><title>403</title>This server answers only to localhost and 127.0.0.1.")
        elif self.path == "/favicon.ico":
            self._send(204, "")
        else:
            with self.server.answer_lock:
                status, page = self.server.answer(self.path)
            self._send(status, page)

    def _send(self, status: int, page: str) -> None:
        body = page.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, since the addresses tell which users and items were viewed."""


def _is_local_host(host: str) -> bool:
    """Return whether a Host header is localhost or an IP address, rather than the name of another site."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
