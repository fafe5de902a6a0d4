"""What the processes of `agmm up` listen on, each by the part that it plays, and tries to get in as a stranger."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from cluster.settings import Services

# A process's command line, and the option of it that names the port; the first that fits. None: any port of it.
_PARTS: tuple[tuple[str, str | None, str], ...] = (
    (r"weed .*server", "-s3.port", "s3"),
    (r"weed .*server", "-s3.port.grpc", "s3 grpc"),
    (r"weed .*server", "-master.port", "master"),
    (r"weed .*server", "-master.port.grpc", "master grpc"),
    (r"weed .*server", "-volume.port", "volume"),
    (r"weed .*server", "-volume.port.grpc", "volume grpc"),
    (r"weed .*server", "-filer.port", "filer"),
    (r"weed .*server", "-filer.port.grpc", "filer grpc"),
    (r"uvicorn .*mlflow", "--port", "mlflow"),
    (r"gcs_server", None, "gcs"),
    (r"ray\.util\.client\.server", None, "ray client"),
    (r"dashboard\.py", "--port", "dashboard"),
    (r"raylet ", None, "raylet"),  # node manager and object manager
    (r"ray::DashboardAgent", "agent", "dashboard agent"),
    (r"ray::DashboardAgent", None, "dashboard agent grpc"),
    (r"ray::RuntimeEnvAgent", None, "runtime env agent"),
    (r"ray::\w+", None, "worker"),
    (r"python -c .*ray\.init\(\)", None, "driver"),  # what the test runs as a job
)


class Listener(NamedTuple):
    part: str
    ip: str
    port: int


def family(running: Services) -> list[psutil.Process]:
    """The services' own processes and all that they started."""
    tops = [psutil.Process(record.pid) for record in running.processes]
    return [*tops, *(child for top in tops for child in top.children(recursive=True))]


def tcp(running: Services) -> list[Listener]:
    """Every TCP port that somebody could connect to; of an unknown part where no line of the table fits."""
    agent = option(" ".join(psutil.Process(running.processes[2].pid).cmdline()), "--dashboard-agent-listen-port")
    return [
        Listener(_part(line, found.laddr.port, agent), found.laddr.ip.removeprefix("::ffff:"), found.laddr.port)
        for line, found in _sockets(running, "tcp")
        if found.status == psutil.CONN_LISTEN
    ]


def udp(running: Services) -> list[tuple[str, object]]:
    """Every bound UDP port."""
    return [(line, found.laddr) for line, found in _sockets(running, "udp")]


def unix(running: Services) -> set[str]:
    """The name of every bound Unix socket."""
    return {str(found.laddr) for _, found in _sockets(running, "unix") if found.laddr}


def _sockets(running: Services, kind: str) -> Iterator[tuple[str, psutil._common.sconn]]:
    for process in family(running):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            yield from ((line, found) for found in process.net_connections(kind))


def option(line: str, name: str) -> str:
    """What an option has on a command line, in either spelling."""
    found = re.search(rf"{re.escape(name)}[= ](\S+)", line)
    return found[1] if found else ""


def _part(line: str, port: int, agent: str) -> str:
    for pattern, name, part in _PARTS:
        if re.search(pattern, line, re.S) and (
            name is None or str(port) == (agent if name == "agent" else option(line, name))
        ):
            return part
    return f"unknown: {line[:120]}"


def status(
    at: Listener, method: str, path: str, body: bytes | None = None, *, trusting: Path | None = None, **headers: str
) -> int:
    """Ask by HTTP, the path as it stands; the answer's status, or 0 if there is no HTTP answer.

    In plain text, or by HTTPS `trusting` an authority's certificate.
    """
    if trusting is None:
        connection = http.client.HTTPConnection(at.ip, at.port, timeout=10)
    else:
        context = ssl.create_default_context(cafile=str(trusting))
        connection = http.client.HTTPSConnection(at.ip, at.port, timeout=10, context=context)
    try:
        connection.request(method, path, body, headers)
        return connection.getresponse().status
    except (http.client.HTTPException, ConnectionError):
        return 0
    finally:
        connection.close()


def handshake(at: Listener, authority: Path, pair: tuple[Path, Path] | None) -> bool:
    """Tell whether a TLS server there takes this pair, or none. It says no after the client's part of TLS 1.3."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2", "http/1.1"])
    if pair is not None:
        context.load_cert_chain(*map(str, pair))
    try:
        with (
            socket.create_connection((at.ip, at.port), timeout=3) as plain,
            context.wrap_socket(plain, server_hostname=at.ip) as secure,
        ):
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
            return bool(secure.recv(1))
    except TimeoutError:
        return True  # it waits for more: the pair was taken
    except (ssl.SSLError, ConnectionError):
        return False
