"""Every port that `agmm up` opens, tried without credentials: none lets anybody read, write, list or run anything."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from cluster import certificates, jobs
from cluster.credentials import CredentialFiles
from cluster.environment import client_environment
from cluster.probes import known_secrets
from cluster.settings import Services
from tests.cluster.listeners import Listener, family, handshake, status, tcp, udp, unix

pytestmark = [
    pytest.mark.s3,
    pytest.mark.ray,
    pytest.mark.timeout(120),
    # Ray 2.60 follows a job's log with an argument that aiohttp 3.14 renamed.
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
]

# part: what guards it. "pair": mutual TLS, so that a stranger's bytes are never read; other parts have a table below.
PARTS = {
    "s3": "signature",
    "s3 grpc": "pair",
    "master": "pair",
    "master grpc": "pair",
    "volume": "pair",
    "volume grpc": "pair",
    "filer": "pair",
    "filer grpc": "pair",
    "mlflow": "password",
    "gcs": "pair",
    "ray client": "pair",
    "dashboard": "token",
    "raylet": "pair",
    "dashboard agent": "token",
    "dashboard agent grpc": "pair",
    "runtime env agent": "token",
    "worker": "pair",
    "driver": "pair",
}

# method, path, and what a stranger gets. 200 is for what tells nothing but that somebody is there.
S3_TRIES = [
    ("GET", "/", 403),
    ("GET", "/agmm", 403),
    ("GET", "/agmm?list-type=2", 403),
    ("GET", "/agmm/.ready", 403),
    ("HEAD", "/agmm/.ready", 403),
    ("PUT", "/agmm/evil", 403),
    ("DELETE", "/agmm/.ready", 403),
    ("DELETE", "/agmm", 403),
    ("PUT", "/another", 403),
    ("GET", "/agmm?policy", 403),
    ("PUT", "/agmm?policy", 403),
    ("POST", "/agmm?delete", 403),
    ("POST", "/agmm/evil?uploads", 403),
    ("GET", "/agmm/..%2f..%2fetc%2fiam%2fidentity.json", 400),
    ("GET", "/?Action=ListUsers&Version=2010-05-08", 403),
    ("GET", "/status", 200),
    ("GET", "/healthz", 200),
]
MLFLOW_TRIES = [
    *(("GET", f"/{path}", 401) for path in ("", "version", "docs", "openapi.json", "signup", "none", "get-artifact")),
    *(("POST", f"/{path}", 401) for path in ("graphql", "v1/traces", "ajax-api/3.0/jobs", "gateway/x/invocations")),
    ("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", 401),
    ("POST", "/ajax-api/2.0/mlflow/experiments/search", 401),
    ("POST", "/api/2.0/mlflow/runs/create", 401),
    ("GET", "/api/2.0/mlflow/registered-models/search", 401),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts", 401),
    ("GET", "/api/2.0/mlflow-artifacts/artifacts/0/run/artifacts/model", 401),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/0/evil", 401),
    ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/0", 401),
    ("POST", "/api/2.0/mlflow/users/create", 401),
    ("PATCH", "/api/2.0/mlflow/users/update-password", 401),
    ("GET", "/static-files/../api/2.0/mlflow/users/list", 404),
    ("GET", "/static-files/..%2f..%2f..%2fmlflow.db", 404),
    ("GET", "/health", 200),
    ("GET", "/api/3.0/mlflow/server-info", 200),  # that it stores with SQL, and what its pages can do
]
_RAY_PATHS = (
    *("api/version", "api/jobs/", "api/v0/actors", "api/v0/tasks", "api/v0/logs", "nodes?view=summary", "logs", "none"),
    *("api/cluster_status", "api/component_activities", "api/serve/applications/", "worker/traceback?pid=1", "events"),
    *("api/packages/gcs/_ray_pkg_0.zip", "api/prometheus_health", "api/data/datasets/1", "/api/jobs/"),
)
DASHBOARD_TRIES = [
    *(("GET", f"/{path}", 401) for path in _RAY_PATHS),
    ("POST", "/api/jobs/", 401),
    ("PUT", "/api/packages/gcs/_ray_pkg_0.zip", 401),
    ("PUT", "/api/serve/applications/", 401),
    ("POST", "/api/jobs/1/stop", 401),
    ("POST", "/api/authenticate", 401),
    ("GET", "/static/../api/jobs/", 403),
    ("GET", "/static/..%2fapi/jobs/", 403),
    ("GET", "/", 200),  # the page that asks for the token
    ("GET", "/api/authentication_mode", 200),
    ("GET", "/api/gcs_healthz", 200),
]
AGENT_TRIES = [
    *(("GET", f"/{path}", 401) for path in ("", "api/version", "metrics", "api/job_agent/jobs/", "logs", "none")),
    *(("POST", f"/{path}", 401) for path in ("api/job_agent/jobs/", "get_or_create_runtime_env")),
]
TRIES = {
    "s3": S3_TRIES,
    "mlflow": MLFLOW_TRIES,
    "dashboard": DASHBOARD_TRIES,
    "dashboard agent": AGENT_TRIES,
    "runtime env agent": AGENT_TRIES,
}


@pytest.fixture(scope="module")
def ports(running: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Listener]]:
    """The ports of services at work: a job with an actor has workers, and they listen too."""
    stop = tmp_path_factory.mktemp("job") / "stop"
    script = (
        "import pathlib, sys, time, ray\n"
        "ray.init()\n"
        "actor = ray.remote(num_cpus=0)(type('Idle', (), {'beat': lambda self: 1})).remote()\n"
        "print('beat', ray.get(actor.beat.remote()), flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists():\n"
        "    time.sleep(0.1)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in client_environment(running).items():
            patch.setenv(name, value)
        said: list[str] = []
        with jobs.connected() as head:
            jobs.submit(head, ["python", "-c", script, str(stop)], shared=True, wait=False, say=said.append)
            name = said[0].split()[1].rstrip(":")
            deadline = time.monotonic() + 60
            while "beat 1" not in (log := jobs.job_logs(head, name)):
                assert time.monotonic() < deadline, log
                time.sleep(0.2)
    yield tcp(running)
    stop.touch()


def _of(ports: list[Listener], guard: str) -> list[Listener]:
    return [each for each in ports if PARTS[each.part] == guard]


def test_every_port_is_known_and_where_it_belongs(running: Services, ports: list[Listener]) -> None:
    assert {each.part for each in ports} == set(PARTS)
    wide = {each.part for each in ports if each.ip == running.host}
    assert wide == {"s3", "s3 grpc", "mlflow"}
    assert {each.ip for each in ports} == {running.host, "127.0.0.1"}
    assert "mlflow" not in {each.part for each in ports if each.ip == "127.0.0.1"}  # S3's gateway is always there too


def test_nothing_is_bound_for_datagrams(running: Services, ports: list[Listener]) -> None:
    assert udp(running) == []


def test_unix_sockets_are_this_users(running: Services, ports: list[Listener]) -> None:
    """By their own mode, or by a folder that nobody else can enter. None is abstract: those have no owner."""
    found = unix(running)
    assert len(found) > 10
    open_to_others = [
        name
        for name in found
        if not name.startswith("/")
        or all(path.stat().st_mode & 0o077 for path in (Path(name), *Path(name).parents[:-1]) if path.exists())
    ]
    assert open_to_others == []


@pytest.mark.parametrize("part", TRIES)
def test_http_gives_a_stranger_nothing(running: Services, ports: list[Listener], part: str) -> None:
    at = next(each for each in ports if each.part == part)
    authority = CredentialFiles(running.home).authority if part in ("s3", "mlflow") else None
    found = [
        (method, path, status(at, method, path, b"{}" if method == "POST" else None, trusting=authority))
        for method, path, _ in TRIES[part]
    ]
    assert found == TRIES[part]


def test_http_refuses_wrong_credentials(running: Services, ports: list[Listener]) -> None:
    by_part = {each.part: each for each in ports}
    authority = CredentialFiles(running.home).authority
    default = base64.b64encode(b"admin:password1234").decode()
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(by_part["mlflow"], "GET", path, trusting=authority, Authorization=f"Basic {default}") == 401
    for part in ("dashboard", "dashboard agent", "runtime env agent"):
        assert status(by_part[part], "GET", "/api/version", Authorization="Bearer wrong") == 403
    right = f"Bearer {known_secrets(running).ray_token}"
    assert status(by_part["dashboard"], "GET", "/api/version", Authorization=right) == 200


def test_the_pair_is_needed(running: Services, ports: list[Listener], tmp_path: Path) -> None:
    """Nothing in plain text, nothing without a certificate, nothing with one that another authority signed."""
    files = CredentialFiles(running.home)
    strangers = tmp_path / "certificate", tmp_path / "key"
    made = certificates.generate(["127.0.0.1"])
    for path, text in zip(strangers, (made.certificate, made.key), strict=True):
        path.write_text(text)
    guarded = _of(ports, "pair")
    assert len(guarded) > 12
    for each in guarded:
        found = [handshake(each, files.authority, pair) for pair in (None, strangers, (files.certificate, files.key))]
        assert found == [False, False, True], each
        assert status(each, "GET", "/") in (0, 400), each


def test_a_call_without_the_pair_does_not_end_the_head(running: Services, ports: list[Listener]) -> None:
    """Ray 2.60 looks at the token too late in this stream: without TLS one call ended its head, and all jobs."""
    before = {process.pid for process in family(running) if process.name() in ("gcs_server", "raylet")}
    for each in _of(ports, "pair"):
        with grpc.insecure_channel(f"{each.ip}:{each.port}") as channel:
            for method in ("/ray.rpc.syncer.RaySyncer/StartSync", "/ray.rpc.InternalKVGcsService/InternalKVKeys"):
                call = channel.unary_unary(method)
                with pytest.raises(grpc.RpcError) as caught:
                    call(b"", timeout=5)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert len(before) == 2
    assert all(psutil.pid_exists(pid) for pid in before)


def test_the_pair_alone_is_not_enough(running: Services) -> None:
    files = CredentialFiles(running.home)
    credentials = grpc.ssl_channel_credentials(
        *(path.read_bytes() for path in (files.authority, files.key, files.certificate))
    )
    with grpc.secure_channel(f"127.0.0.1:{running.ports.ray}", credentials) as channel:
        for method in ("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", "/ray.rpc.InternalKVGcsService/InternalKVKeys"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=5)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"])
def test_ray_refuses_a_driver(running: Services, tmp_path: Path, missing: str) -> None:
    environment = {**os.environ, **client_environment(running), "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    del environment[missing]
    if missing == "RAY_AUTH_TOKEN_PATH":
        (tmp_path / "token").write_text("0" * 48)
        environment[missing] = str(tmp_path / "token")
    script = "import ray; ray.init(); print('let', 'in')"
    command = ["timeout", "20", sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "let in" not in done.stdout
