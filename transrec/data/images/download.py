"""Downloads an image: over http or https only, in bounded time and size, and not from private addresses by default.

Links come from data that anybody may have written. No link may make this machine contact its own network, read a file
or wait forever.
"""

import http.client
import ssl
import string
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from ipaddress import ip_address
from time import monotonic
from typing import NamedTuple
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import transrec
from transrec.cpus import usable_cpus
from transrec.data.images.pictures import Problem, decode
from transrec.errors import TransrecError

REDIRECTS = {301, 302, 303, 307, 308}
MAX_REDIRECTS = 5
# Status codes of temporary failures: a later request may succeed.
TEMPORARY_STATUSES = {408, 425, 429, 500, 502, 503, 504}
BLOCK_BYTES = 2**16
MIN_TIMEOUT_SECONDS = 0.001
SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}
# A small file may decode to 64 million pixels, so only a few threads decode at once, however large --jobs is.
_decoding = threading.BoundedSemaphore(min(4, usable_cpus()))


@dataclass(frozen=True)
class Limits:
    """Limits of a fetch.

    Attributes:
        jobs: number of simultaneous requests.
        rate: maximum requests per second to each host.
        timeout: seconds per attempt.
        retries: further attempts at an address after the first.
        max_mib: maximum size of an image file in MiB.
        allow_private: whether links may lead to addresses of this machine and its network.
    """

    jobs: int = 16
    rate: float = 20.0
    timeout: float = 30.0
    retries: int = 4
    max_mib: float = 20.0
    allow_private: bool = False

    def __post_init__(self):
        if not 1 <= self.jobs <= 256:
            raise TransrecError(f"--jobs {self.jobs}: must be from 1 to 256")
        if self.retries < 0:
            raise TransrecError(f"--retries {self.retries}: must be at least 0")
        for name in ("rate", "timeout", "max_mib"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TransrecError(f"--{name} {getattr(self, name)}: must be above 0")


class Picture(NamedTuple):
    """An image file: its bytes, the suffix of its kind, and any form that needs --convert of build_lmdb.py, or ""."""

    data: bytes
    suffix: str
    remark: str


class Failure(Exception):
    """The reason why an address gave no image.

    Attributes:
        is_temporary: whether another attempt may succeed.
        answered: whether the server responded at all.
        wait: seconds that the server asks to wait before the next request, 0 if it does not ask.
    """

    def __init__(self, reason: str, is_temporary: bool = False, answered: bool = True, wait: float = 0):
        super().__init__(reason)
        self.is_temporary, self.answered, self.wait = is_temporary, answered, wait


def download(address: str, limits: Limits) -> Picture:
    """Return the image at an address, decoded once to check that it is complete. Raises Failure."""
    deadline = monotonic() + limits.timeout
    opener = _opener(_Peers(limits.allow_private))
    address = web_address(address)
    for hop in range(MAX_REDIRECTS + 1):
        with _failures("no connection", limits.timeout, answered=hop > 0):
            request = urllib.request.Request(address, headers={"User-Agent": f"transrec/{transrec.__version__}"})
            response = opener.open(request, timeout=max(MIN_TIMEOUT_SECONDS, deadline - monotonic()))
        with response, _failures("broken off", limits.timeout, answered=True):
            location = response.headers["Location"]
            if response.status not in REDIRECTS or not location:
                return _picture(response, limits, deadline)
            # http.client decodes headers as Latin-1, whatever their encoding.
            target = quote(location, safe=string.punctuation, encoding="iso-8859-1")
            address = web_address(urljoin(address, target))
    raise Failure(f"redirected more than {MAX_REDIRECTS} times")


def web_address(text: str) -> str:
    """Return an address escaped for use in a request. Raises Failure if it is not an http or https address."""
    try:
        parts = urlsplit(text.strip())
        host = parts.netloc.encode("idna").decode()
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise Failure("not an http or https address")
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


class _Peers:
    """Checks the hosts of a link: private ones must be allowed, and a public host may not redirect to a private one."""

    def __init__(self, allow_private: bool):
        self._may_be_private, self._remedy = allow_private, "--allow_private takes it"

    def check(self, peer: str) -> None:
        if (private := is_private(peer)) and not self._may_be_private:
            raise Failure(f"private address: {peer}; {self._remedy}")
        self._may_be_private, self._remedy = private, "a public server redirects there"


def is_private(peer: str) -> bool:
    """Return whether an IP address belongs to this machine or its network."""
    address = ip_address(peer.partition("%")[0])
    return not (getattr(address, "ipv4_mapped", None) or address).is_global


def _connection(kind: type[http.client.HTTPConnection], peers: _Peers | None, *args, **options):
    """Return a connection whose peer is checked before anything is sent."""

    class Connection(kind):
        def connect(self) -> None:
            super().connect()
            if peers:
                peers.check(self.sock.getpeername()[0])

    return Connection(*args, **options)


class _Handler(urllib.request.AbstractHTTPHandler):
    """Opens connections with checked peers. Connections to a proxy are exempt, since the proxy resolves host names."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, peers: _Peers):
        super().__init__()
        self._peers = peers

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._open(http.client.HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._open(http.client.HTTPSConnection, request, context=_certificates())

    def _open(self, kind: type[http.client.HTTPConnection], request: urllib.request.Request, **options):
        through_proxy = request.has_proxy() or getattr(request, "_tunnel_host", None)
        connection = partial(_connection, kind, None if through_proxy else self._peers)
        return self.do_open(connection, request, **options)


@cache
def _certificates() -> ssl.SSLContext:
    """Return the TLS context, cached because loading the system's certificates takes longer than fetching an image."""
    return ssl.create_default_context()


def _opener(peers: _Peers) -> urllib.request.OpenerDirector:
    """Return an opener that uses the proxies from the environment and does not follow redirects."""
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(_Handler(peers))
    return opener


@contextmanager
def _failures(what: str, timeout: float, answered: bool) -> Iterator[None]:
    """Within this context, raise connection errors as Failure."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        if isinstance(cause, TimeoutError):
            raise Failure(f"no answer in {timeout:g} s", True, answered) from error
        if isinstance(cause, http.client.InvalidURL | ValueError | ssl.SSLCertVerificationError):
            raise Failure(f"cannot be asked for: {cause}") from error
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise Failure(f"{what}: {reason}", True, answered) from error


def _picture(response: http.client.HTTPResponse, limits: Limits, deadline: float) -> Picture:
    if response.status != 200:
        wait = _retry_after_seconds(response.headers["Retry-After"] or "") if response.status in (429, 503) else 0
        raise Failure(f"HTTP {response.status}", is_temporary=response.status in TEMPORARY_STATUSES, wait=wait)
    data = _body(response, limits, deadline)
    try:
        with _decoding:
            _, remark = decode(data, convert=True)
    except Problem as problem:
        raise Failure(f"{problem} (sent as {response.headers.get_content_type()})") from problem
    return Picture(data, SUFFIXES[data[:2]], remark)


def _body(response: http.client.HTTPResponse, limits: Limits, deadline: float) -> bytes:
    most, declared = int(limits.max_mib * 2**20), response.length
    too_large = Failure(f"larger than {limits.max_mib:g} MiB")
    if (declared or 0) > most:
        raise too_large
    body = bytearray()
    while block := response.read1(BLOCK_BYTES):
        body += block
        if len(body) > most:
            raise too_large
        if monotonic() > deadline:
            raise Failure(f"not whole after {limits.timeout:g} s: {len(body):,} bytes", is_temporary=True)
    if len(body) < (declared or 0):
        raise Failure(f"broken off: {len(body):,} of {declared:,} bytes", is_temporary=True)
    return bytes(body)


def _retry_after_seconds(text: str) -> float:
    """Return the seconds of a Retry-After header, which holds a number of seconds or a date."""
    if text.strip().isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return 0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
