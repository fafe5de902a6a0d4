"""A loopback HTTP proxy between S3 clients and a real server, which answers with faults by a script.

    with S3Proxy(server_port) as proxy:
        proxy.fault("503", r"PUT .*", times=3)          # the next three that match, then it passes
        proxy.fault("reset_after", probability=0.2, seed=1)
        proxy.fault("403")                              # always

Requests and answers are forwarded byte by byte, so that signatures stay valid: they cover the client's Host header.
Kinds of faults: the keys of STATUSES are answered without the server; see FAULTS for the others.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import socketserver
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import BinaryIO

STATUSES = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "signature": (403, "SignatureDoesNotMatch"),
    "expired": (400, "ExpiredToken"),
    "no_bucket": (404, "NoSuchBucket"),
}
FAULTS = {
    "reset": "broken off once the head of the request is there",
    "reset_upload": "broken off in the middle of the request's body",
    "reset_after": "done by the server, then broken off instead of its answer",
    "reset_download": "broken off in the middle of the answer's body",
    "cut": "closed in order in the middle of the answer's body",
    "stall": "taken, then nothing for `amount` seconds",
    "stall_upload": "half of the request's body is taken, then nothing for `amount` seconds",
    "stall_download": "half of the answer's body, then nothing for `amount` seconds",
    "trickle": "passed on, both ways, with `amount` bytes per second",
}
_BLOCK = 1 << 16


class _Broken(Exception):
    """The connection to the client is to be reset."""


class _Ended(Exception):
    """The connection to the client is to be closed."""


@dataclass
class _Rule:
    kind: str
    match: re.Pattern[str]
    left: int | None
    probability: float
    generator: random.Random
    amount: float

    def strikes(self, line: str) -> bool:
        if self.left == 0 or not self.match.search(line) or self.generator.random() >= self.probability:
            return False
        self.left = None if self.left is None else self.left - 1
        return True


@dataclass
class _Message:
    """A request or an answer: its head as it came, and how long its body is (None: in chunks)."""

    head: bytes
    headers: dict[str, str]
    length: int | None = 0

    @property
    def first(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")


@dataclass
class S3Proxy:
    """Listens at `url`, on `port` or any free one, while it is entered; forwards to 127.0.0.1:`upstream`.

    `requests` counts by (METHOD, fault or ""); `lines` has `METHOD target` of each request, `access_keys` those that
    signed one, `last_head` the head of the last one. The Date of answers is `ahead` seconds ahead of the server's.
    """

    upstream: int
    port: int = 0
    ahead: float = 0.0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)
    access_keys: list[str] = field(default_factory=list)
    last_head: str = ""

    def __post_init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock, self.closing = threading.Lock(), threading.Event()

    def fault(
        self, kind: str, match: str = "", *, times: int | None = None, probability: float = 1.0, seed=0, amount=60.0
    ) -> None:
        """Strike requests whose `METHOD target` matches; `times` of them, or all."""
        assert kind in STATUSES or kind in FAULTS, kind
        with self._lock:
            self._rules.append(_Rule(kind, re.compile(match), times, probability, random.Random(seed), amount))

    def clear(self) -> None:
        """Forget all faults and counts."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
            self.lines.clear()
            self.access_keys.clear()

    @property
    def struck(self) -> int:
        """How many requests met a fault."""
        return sum(count for (_, kind), count in self.requests.items() if kind)

    def __enter__(self) -> S3Proxy:
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.hang_up()
        self._server.server_close()
        self._thread.join(5)

    def choose(self, request: _Message) -> tuple[str, float]:
        """The fault for this request, or ""; counted."""
        method, target, _ = request.first.split(" ", 2)
        line = f"{method} {target}"
        with self._lock:
            rule = next((rule for rule in self._rules if rule.strikes(line)), None)
            kind, amount = (rule.kind, rule.amount) if rule else ("", 0.0)
            self.requests[method, kind] += 1
            self.lines.append(line)
            self.last_head = request.head.decode("latin-1")
            self.access_keys += re.findall(r"Credential=([^/]+)/", request.headers.get("authorization", ""))
        return kind, amount


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, proxy: S3Proxy) -> None:
        self.proxy = proxy
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", proxy.port), _Client)
        # A slow line holds little on the way; by itself the system would take megabytes at once. For all connections.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)

    def hang_up(self) -> None:
        """Close the connections that clients keep for their next request."""
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class _Client(socketserver.StreamRequestHandler):
    """One connection from a client and the one to the server that belongs to it."""

    server: _Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        proxy = self.server.proxy
        with contextlib.ExitStack() as stack:
            upstream = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.upstream), timeout=120))
            self.server.open.add(self.connection)
            stack.callback(self.server.open.discard, self.connection)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._up = stack.enter_context(upstream.makefile("rb"))
            self._send_up = upstream.sendall
            try:
                while (request := _read_head(self.rfile)) is not None:
                    self._serve(request, *proxy.choose(request))
            except _Broken:  # RST instead of FIN
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except (_Ended, OSError):
                pass

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def _serve(self, request: _Message, kind: str, amount: float) -> None:
        if kind in STATUSES:
            self._answer(request, *STATUSES[kind])
        elif kind == "stall":
            self._wait(amount)
        elif kind == "reset":
            raise _Broken
        else:
            self._forward(request, kind, amount)

    def _answer(self, request: _Message, status: int, code: str) -> None:
        waits = _expects(request)
        if not waits:
            self._pass_body(self.rfile, request, lambda _: None)
        method = request.first.split(" ")[0]
        text = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        end = b"Connection: close\r\n" if waits else b""
        head = b"HTTP/1.1 %d %s\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n%s\r\n"
        self.wfile.write(head % (status, code.encode(), len(text), end) + (b"" if method == "HEAD" else text))
        if waits:
            raise _Ended

    def _wait(self, seconds: float) -> None:
        self.server.proxy.closing.wait(seconds)
        raise _Ended

    def _forward(self, request: _Message, kind: str, amount: float) -> None:
        head = request.head
        if _expects(request):  # answered here; the header is not signed
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head)
        self._send_up(head)
        self._pass_body(
            self.rfile, request, self._send_up, kind if "upload" in kind or kind == "trickle" else "", amount
        )
        answer = _read_head(self._up, request.first.split(" ")[0])
        if answer is None:
            raise _Ended
        if kind == "reset_after":
            self._pass_body(self._up, answer, lambda _: None)
            raise _Broken
        self.wfile.write(_shifted(answer.head, self.server.proxy.ahead))
        self._pass_body(self._up, answer, self.wfile.write, "" if "upload" in kind else kind, amount)
        if answer.headers.get("connection", "").lower() == "close":
            raise _Ended

    def _pass_body(self, source: BinaryIO, message: _Message, send, kind: str = "", amount: float = 0.0) -> None:
        """Pass a body on; with a fault, half of it. One without a body is struck where the body would begin."""
        if message.length is None:
            broken = kind not in ("", "trickle")
            _pass_chunks(source, send, broken=broken)
            if broken:
                self._strike(kind, amount)
            return
        halved = message.length if kind in ("", "trickle") else message.length // 2
        rate = amount if kind == "trickle" else None
        while halved:
            block = (
                source.read1(min(halved, _BLOCK)) if rate is None else source.read(min(halved, _BLOCK, int(rate / 10)))
            )
            if not block:
                raise _Ended
            send(block)
            halved -= len(block)
            if rate is not None:
                self.server.proxy.closing.wait(len(block) / rate)
        if kind not in ("", "trickle"):
            self._strike(kind, amount)

    def _strike(self, kind: str, amount: float) -> None:
        if kind == "cut":
            raise _Ended
        if kind.startswith("stall"):
            self._wait(amount)
        raise _Broken


def _read_head(source: BinaryIO, method: str = "") -> _Message | None:
    """The next head; of an answer if `method`, that of its request, is given. None at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = source.readline(_BLOCK)
        if not line:
            return None
        head += line
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    message = _Message(head, headers)
    bodiless = method == "HEAD" or (method and message.first.split(" ")[1] in ("204", "304"))
    if not bodiless:
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        message.length = None if chunked else int(headers.get("content-length", 0))
    return message


def _shifted(head: bytes, seconds: float) -> bytes:
    """A head with another time in its Date."""

    def shift(found: re.Match[bytes]) -> bytes:
        then = parsedate_to_datetime(found[2].decode()) + timedelta(seconds=seconds)
        return found[1] + format_datetime(then, usegmt=True).encode()

    return re.sub(rb"(?i)(\r\ndate: *)([^\r]*)", shift, head) if seconds else head


def _expects(request: _Message) -> bool:
    return request.headers.get("expect", "").lower() == "100-continue"


def _pass_chunks(source: BinaryIO, send, *, broken: bool) -> None:
    """Chunks as they came, with extensions and trailers; only half of the first if it is to be broken off."""
    while True:
        line = source.readline()
        send(line)
        size = int(line.split(b";")[0], 16)
        if not size:
            break
        if broken:
            send(source.read(size // 2))
            return
        send(source.read(size + 2))
    while line := source.readline():
        send(line)
        if line == b"\r\n":
            break
