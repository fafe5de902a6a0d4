"""What the local services are asked to be (`ServiceSettings`), and what is known of those that run (`Services`)."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cluster.errors import UserError

LOOPBACK = "127.0.0.1"
# Seconds from SIGTERM to SIGKILL when a job is stopped: Ray's three are too few to save a checkpoint in.
JOB_STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
REGION = "us-east-1"  # any name serves: the S3 server has one region, but clients refuse to sign without a name


def _allowed_port(port: int) -> int:
    if port == 0 or 1024 <= port <= 65535:
        return port
    raise ValueError(f"{port} is not a port that can be used here: 1024 to 65535, or 0 for any free one")


def _one_address(host: str) -> str:
    """Take one IPv4 address: clients are told it, and the certificate names it."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError as error:
        raise ValueError(f"--host takes one IPv4 address of this machine, such as {LOOPBACK}, got {host!r}") from error
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"--host takes one address of this machine, not all of them or a group: got {host}")
    return host


Port = Annotated[int, AfterValidator(_allowed_port)]
Host = Annotated[str, AfterValidator(_one_address)]


class ServiceSettings(BaseModel):
    """What `up` starts. A port of 0 means any free port; `num_cpus` of None lets Ray count the cores.

    `host` is where S3 and MLflow listen; wider than loopback they speak TLS only. The Ray head stays on loopback:
    whoever is let in runs commands, and its dashboard has no TLS. With `metrics`, all on this machine read those of Ray
    and of runs: Ray asks no token for them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    s3_port: Port = 8333
    mlflow_port: Port = 5000
    dashboard_port: Port = 8265
    ray_port: Port = 6379
    num_cpus: Annotated[int, Field(ge=1)] | None = None
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")] = "agmm"
    host: Host = LOOPBACK
    tls: bool = False
    metrics: bool = False  # Ray's, to whoever asks on loopback

    @model_validator(mode="after")
    def _no_password_in_plain_text(self) -> ServiceSettings:
        if not self.tls and not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(
                f"--host {self.host} is wider than loopback: keys and passwords would travel in plain text. Add --tls"
            )
        return self


class Ports(BaseModel):
    """The ports that clients use: those of S3 and MLflow on the services' host, the others on loopback."""

    model_config = ConfigDict(frozen=True)

    s3: int
    mlflow: int
    dashboard: int
    ray: int


class ProcessRecord(BaseModel):
    """One started process. The creation time (seconds since the epoch) tells it from a later owner of its number."""

    model_config = ConfigDict(frozen=True)

    service: str
    pid: int
    created: float


class Services(BaseModel):
    """The running services, as stored in `state.json`. `complete` is False while they are still being started.

    `marker` is in the environment of every process started here, so that those that outlived their parent are found.
    `runtime_dir` is short because the names of Unix sockets in it may have 107 bytes; `sockets` lie outside of it.
    """

    model_config = ConfigDict(frozen=True)

    home: Path
    bucket: str
    ports: Ports
    marker: str
    runtime_dir: Path
    started: datetime
    sockets: tuple[Path, ...] = ()
    processes: tuple[ProcessRecord, ...] = ()
    complete: bool = False
    host: Host = LOOPBACK
    tls: bool = False
    metrics: bool = False

    @property
    def metrics_targets(self) -> Path:
        """The file in which Ray lists its metrics' endpoints, for `file_sd_configs` of Prometheus."""
        return self.runtime_dir / "r" / "prom_metrics_service_discovery.json"

    @property
    def s3_url(self) -> str:
        """Where S3 clients connect."""
        return f"{self._scheme}://{self.host}:{self.ports.s3}"

    @property
    def mlflow_url(self) -> str:
        """Where MLflow clients and browsers connect."""
        return f"{self._scheme}://{self.host}:{self.ports.mlflow}"

    @property
    def _scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def dashboard_url(self) -> str:
        """Where job submissions and browsers connect."""
        return f"http://{LOOPBACK}:{self.ports.dashboard}"

    @property
    def ray_address(self) -> str:
        """What `ray.init(address=...)` takes."""
        return f"{LOOPBACK}:{self.ports.ray}"


class ServiceStatus(BaseModel):
    """One line of `agmm status`. `state` is running, unreachable (alive, but no answer), dead or stopped."""

    model_config = ConfigDict(frozen=True)

    service: str
    state: str
    url: str
    pid: int | None
    detail: str


def service_dir(home: Path) -> Path:
    """Name the folder of the services' state, logs, data and credentials, below an absolute `home`."""
    return home.expanduser().absolute() / "services"


def state_file(home: Path) -> Path:
    """Name the record of what runs."""
    return service_dir(home) / "state.json"


def load_services(home: Path) -> Services | None:
    """Read what is recorded as running, whether or not it still does; None without a record."""
    path = state_file(home)
    try:
        return Services.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(
            f"The record of running services is unreadable: {path}. It is written by `agmm up` alone. "
            "Stop what it started by hand, then delete the file."
        ) from error
