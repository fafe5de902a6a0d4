"""A real S3 server by itself, without the other services: SeaweedFS on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster import commands, credentials, processes
from cluster.environment import CONFLICTING, client_environment
from cluster.probes import prepare_s3, wait_ready
from cluster.settings import Ports, Services, service_dir

SECOND_KEY = ("SECONDKEY0", "second-secret")


@contextlib.contextmanager
def s3_server(home: Path) -> Iterator[Services]:
    """Start it with the bucket `agmm` and two keys that open every bucket: the generated one and SECOND_KEY."""
    folder = service_dir(home)
    (folder / "s3").mkdir(parents=True)
    spare = processes.free_ports(commands.SPARE_PORTS + 1)
    services = Services(
        home=home,
        bucket="agmm",
        ports=Ports(s3=spare[-1], mlflow=1, dashboard=1, ray=1),
        marker=secrets.token_hex(16),
        runtime_dir=Path(tempfile.mkdtemp(prefix="agmm-")),
        started=datetime.now(UTC),
        sockets=commands.s3_sockets(spare),
    )
    _allow_two_keys(home)
    command, environment = commands.s3_command(services, spare), commands.service_environment(services)
    log = folder / "s3.log"
    record = processes.start("s3", command, log=log, cwd=folder, environment=environment)
    try:
        wait_ready(prepare_s3, services, record, log, 60.0)
        yield services
    finally:
        processes.stop(record, 1.0)
        processes.stop_marked(services.marker, 1.0)
        for socket in services.sockets:
            socket.unlink(missing_ok=True)
        shutil.rmtree(services.runtime_dir)


def point_at(services: Services, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process's S3 clients talk to `url`, a proxy's say, with the generated key."""
    for name in CONFLICTING:
        monkeypatch.delenv(name, raising=False)
    for name, value in client_environment(services).items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)


def _allow_two_keys(home: Path) -> None:
    known = credentials.load_or_create(home, "agmm")
    pairs = ((known.s3_key, known.s3_secret), SECOND_KEY)
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": ["Admin"]}
        for key, secret in pairs
    ]
    credentials.write_private(credentials.CredentialFiles(home).s3, json.dumps({"identities": identities}))
