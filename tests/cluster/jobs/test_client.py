"""Reaching a job server: addresses, certificates, errors; no head here."""

from __future__ import annotations

import http.server
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import ServiceError, UserError
from cluster.jobs import connected
from cluster.jobs.records import checked_name
from cluster.processes import free_ports
from tests.tls_proxy import Authority


@pytest.fixture(autouse=True)
def no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A TLS server that is no Ray head, and the file of its authority."""
    authority = Authority(tmp_path, "authority")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server_certificate())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", authority.file
    server.shutdown()
    thread.join()
    server.server_close()


def _reach(address: str | None = None, ca: str | None = None) -> None:
    with connected(address, ca):
        pass


def test_no_address() -> None:
    with pytest.raises(UserError, match=r"agmm up.*--address"):
        _reach()


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "file:///etc/passwd"])
def test_an_address_of_another_kind(address: str) -> None:
    with pytest.raises(UserError, match="http://"):
        _reach(address)


def test_an_address_with_a_password_is_not_shown() -> None:
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH") as caught:
        _reach("https://me:planted@head.invalid")
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "../version", "/etc", "a/b", "a%2fb", "a?b", "a b", "a\n", "a" * 200])
def test_a_name_that_leads_elsewhere(name: str) -> None:
    with pytest.raises(UserError, match="no id of a job"):
        checked_name(name)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The given address counts, not the environment's."""
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere.invalid:8265")
    with pytest.raises(ServiceError, match=f"No Ray head answers at http://127.0.0.1:{port}.*agmm up"):
        _reach(f"127.0.0.1:{port}")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://elsewhere.invalid:8265"


def test_somebody_else_answers() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else can take it meanwhile
        with pytest.raises(ServiceError, match="No Ray head"):
            _reach(f"http://127.0.0.1:{other.getsockname()[1]}")


def test_a_certificate_of_an_unknown_authority(elsewhere: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = elsewhere
    with pytest.raises(UserError, match=r"not vouched for by an authority that this system knows: .*--ca FILE"):
        _reach(url)
    other = Authority(tmp_path, "other")
    with pytest.raises(UserError, match=rf"not vouched for by an authority in {other.file}: "):
        _reach(url, str(other.file))


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_file_without_a_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    if how == "variable":
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(UserError, match="--ca" if how == "option" else "SSL_CERT_FILE"):
        _reach("https://127.0.0.1:1", str(path) if how == "option" else None)


def test_tls_to_a_server_without(tmp_path: Path) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request).start()
        with pytest.raises(UserError, match="does not speak TLS"):
            _reach(f"https://127.0.0.1:{server.server_port}")


def test_importing_is_cheap() -> None:
    """The command line imports these modules to print its help."""
    script = (
        "import sys, cluster.jobs, cluster.services\n"
        "print([name for name in ('ray', 'boto3', 'mlflow', 'torch', 'psutil', 'aiohttp') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
