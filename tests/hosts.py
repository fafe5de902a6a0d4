"""Hosts of a Ray cluster on this machine: each with a network, processes, a name and a disk of its own.

Processes of a host are in namespaces, so that none sees another's or those of the machine, and end with the first of
them. What a host writes below `own`, which is the same path on all, is in its own `disk`. Linux and root.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import certificates
from cluster.credentials import write_private
from cluster.environment import CONFLICTING, environment
from pipelines.benchmarks.namespaces import INTERFACE, Node, network
from pipelines.benchmarks.namespaces import why_not as no_network

_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")
# not exec: the first process of a host has to see its orphans off
_BOOT = 'hostname "$0" && mount --bind "$1" "$2" && shift 2 && "$@"; exit $?'
_PORT, _DASHBOARD = 6379, 8265
_JOIN_S = 180.0  # for all nodes, on a busy machine
# Ray finds a node without a line within 20 s, not within 66: five misses of 3 s, a second between them
_HEALTH = {"initial_delay_ms": 2000, "period_ms": 1000, "timeout_ms": 3000, "failure_threshold": 5}
_NODES = """
import json, sys, urllib.request as r
ask = r.Request(sys.argv[1] + "/api/v0/nodes", headers={"Authorization": "Bearer " + open(sys.argv[2]).read()})
found = json.load(r.urlopen(ask, timeout=10))["data"]["result"]["result"]
print(json.dumps({node["node_ip"]: node["state"] for node in found}))
"""


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    missing = [name for name in ("unshare", "mount", "hostname") if shutil.which(name) is None]
    return no_network() or (f"{' and '.join(missing)} is not installed" if missing else "")


@dataclass(frozen=True)
class Host:
    """A host; its first process runs the node of Ray."""

    name: str
    node: Node
    disk: Path
    process: subprocess.Popen[bytes]

    def cut(self) -> None:
        """Pull its cable."""
        subprocess.run(["ip", "-n", self.node.name, "link", "set", INTERFACE, "down"], check=True, timeout=20)

    def said(self) -> str:
        """What its `ray start` printed."""
        return (self.disk / "ray.log").read_text()


@dataclass(frozen=True)
class Hosts:
    """A head, which runs jobs and trains nothing, and workers of one core. `office` is where people sit: no Ray."""

    office: Node
    home: Path  # of the services of `agmm up`, in the office
    root: Path
    head: Host
    workers: tuple[Host, ...]

    def variables(self) -> dict[str, str]:
        """What a program in the office needs for S3, MLflow and the job server."""
        return _variables(self.root, self.head.node.address, self.home) | {"AGMM_HOME": str(self.root / "office")}

    def states(self) -> dict[str, str]:
        """What Ray says of its nodes, by address."""
        url = self.variables()["RAY_API_SERVER_ADDRESS"]
        command = self.office.command(sys.executable, "-c", _NODES, url, str(self.root / "token"))
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        return dict(json.loads(ended.stdout)) if ended.returncode == 0 else {}


@contextmanager
def hosts(home: Path, workers: int) -> Iterator[Hosts]:
    """An office with the services of `agmm up`, a head and so many workers; all of it ends with the context."""
    with ExitStack() as ends:
        root = Path(tempfile.mkdtemp(prefix="agmm-", dir="/tmp"))  # short: Ray has Unix sockets in it
        ends.callback(shutil.rmtree, root, ignore_errors=True)
        (root / "own").mkdir()
        office, head, *others = ends.enter_context(network(2 + workers))
        _secure(root, [node.address for node in (head, *others)])
        ends.enter_context(_services(office, home))
        variables = _variables(root, head.address, home)
        first = ends.enter_context(_host("head", head, root, variables, _head(head)))
        rest = tuple(
            ends.enter_context(_host(f"worker-{index}", node, root, variables, _worker(node, head)))
            for index, node in enumerate(others, 1)
        )
        made = Hosts(office, home, root, first, rest)
        _wait(made)
        yield made


def agmm(node: Node, variables: Mapping[str, str], *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of `agmm` to its end, on a node outside of the cluster."""
    command = node.command(sys.executable, "-m", "pipelines.cli", *words)
    ended = subprocess.run(command, capture_output=True, text=True, env=dict(variables), check=False, timeout=300)
    assert ended.returncode == code, f"{words}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
    return ended


def _secure(root: Path, addresses: list[str]) -> None:
    """The token and the certificates that all hosts have: Ray speaks mutual TLS between them."""
    made = certificates.generate([*addresses, "127.0.0.1", "localhost"])
    files = {"token": secrets.token_hex(24), "authority": made.authority, "certificate": made.certificate}
    for name, text in (files | {"key": made.key}).items():
        write_private(root / name, text)


@contextmanager
def _services(office: Node, home: Path) -> Iterator[None]:
    variables = _plain() | {"AGMM_HOME": str(home)}
    try:
        agmm(office, variables, "up", "--host", office.address, "--tls")
        yield
    finally:
        agmm(office, variables, "down")


def _plain() -> dict[str, str]:
    """This process's environment without what points at services, and with this interpreter's programs first."""
    kept = {name: value for name, value in os.environ.items() if name not in CONFLICTING and name[:4] != "RAY_"}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def _variables(root: Path, head: str, home: Path) -> dict[str, str]:
    """S3 and MLflow of the office, Ray of the head, and folders of each host's own."""
    ray = {
        "RAY_ADDRESS": f"{head}:{_PORT}",
        "RAY_API_SERVER_ADDRESS": f"http://{head}:{_DASHBOARD}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(root / "token"),
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(root / "authority"),
        "RAY_TLS_SERVER_CERT": str(root / "certificate"),
        "RAY_TLS_SERVER_KEY": str(root / "key"),
        **{f"RAY_health_check_{name}": str(value) for name, value in _HEALTH.items()},
    }
    own = {"AGMM_HOME": str(root / "own" / "home"), "AGMM_CACHE": str(root / "own" / "cache")}
    stores = {name: value for name, value in environment(home).items() if name[:4] != "RAY_"}
    return _plain() | stores | ray | own | {"GLOO_SOCKET_IFNAME": INTERFACE}


def _head(node: Node) -> list[str]:
    return ["--head", f"--port={_PORT}", f"--dashboard-host={node.address}", f"--dashboard-port={_DASHBOARD}"]


def _worker(node: Node, head: Node) -> list[str]:
    return [f"--address={head.address}:{_PORT}"]


@contextmanager
def _host(name: str, node: Node, root: Path, variables: Mapping[str, str], role: list[str]) -> Iterator[Host]:
    """Boot a host with `ray start`; a head has no core for workers."""
    disk, own = root / name, root / "own"
    disk.mkdir()
    options = {
        "node-ip-address": node.address,
        "num-cpus": int("--head" not in role),
        "object-store-memory": 100_000_000,
        "temp-dir": own / "ray",
    }
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *role]
    boot = [*_APART, "sh", "-c", _BOOT, name, str(disk), str(own)]
    command = node.command(*boot, *start, *(f"--{key}={value}" for key, value in options.items()))
    with (disk / "ray.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(variables))
    try:
        yield Host(name, node, disk, process)
    finally:
        process.kill()  # and with it all that runs on the host
        process.wait(timeout=60)


def _wait(made: Hosts) -> None:
    """Until Ray knows all nodes."""
    everyone = (made.head, *made.workers)
    deadline = time.monotonic() + _JOIN_S
    while made.states() != {host.node.address: "ALIVE" for host in everyone}:
        ended = [host for host in everyone if host.process.poll() is not None]
        assert not ended, "\n".join(f"{host.name}:\n{host.said()}" for host in ended)
        assert time.monotonic() < deadline, "\n".join(f"{host.name}:\n{host.said()}" for host in everyone)
        time.sleep(1.0)
