"""A loopback TLS proxy before a plain server, with a certificate of an authority made here; it can go away for a while.

    with TLSProxy(server_port, Authority(folder, "name").server_certificate()) as proxy:
        proxy.hang_up()         # breaks all connections
        proxy.away = True       # and refuses new ones, as a gateway without its server does

Bytes are passed on as they come, so web sockets work too.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import socketserver
import ssl
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority; `file` is what a client trusts."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key, self._folder = ec.generate_private_key(ec.SECP256R1()), folder
        usage = x509.KeyUsage(*[number in (5, 6) for number in range(9)])  # to sign certificates and their revocations
        made = (
            _certificate(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def server_certificate(self) -> Path:
        """A file with the key and certificate of a server on 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = (
            _certificate(x509.Name([]), self._name, key)
            .add_extension(loopback, critical=True)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / "server.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
        return path


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


class TLSProxy:
    """Listens at `url` while it is entered, and forwards to 127.0.0.1:`upstream`."""

    def __init__(self, upstream: int, certificate: Path) -> None:
        self.upstream, self.away = upstream, False
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self.open: set[socket.socket] = set()

    def __enter__(self) -> TLSProxy:
        self._server = _Server(("127.0.0.1", 0), _Client)
        self._server.proxy = self
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self.hang_up()
        self._server.server_close()
        self._thread.join(5)

    def hang_up(self) -> None:
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Server(socketserver.ThreadingTCPServer):
    proxy: TLSProxy
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that does not trust us, or left, is no news."""


class _Client(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        proxy = self.server.proxy
        if proxy.away:
            return
        with (
            proxy.context.wrap_socket(self.request, server_side=True) as client,
            socket.create_connection(("127.0.0.1", proxy.upstream)) as server,
        ):
            ends = {client, server}
            proxy.open |= ends
            try:
                back = threading.Thread(target=_pass, args=(server, client), daemon=True)
                back.start()
                _pass(client, server)
                back.join(30)
            finally:
                proxy.open -= ends


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
