"""The embedded services: an S3 server, an MLflow server and a Ray head. `up`, `down`, `status`.

Their processes outlive the command that started them; `state.json` says what runs. Nothing listens wider than loopback,
but for S3 and MLflow where the settings say so, and each of the three asks for a credential that was generated here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cluster import commands, credentials, processes
from cluster.environment import activate, environment, export_lines
from cluster.errors import ServiceError, UserError
from cluster.probes import Probe, describe, prepare_s3, probe_mlflow, probe_ray, probe_s3, wait_ready
from cluster.settings import (
    LOOPBACK,
    Ports,
    ProcessRecord,
    Services,
    ServiceSettings,
    ServiceStatus,
    load_services,
    service_dir,
    state_file,
)

__all__ = ["activate", "down", "environment", "export_lines", "status", "up"]

Say = Callable[[str], None]
_MIN_FREE = 2**30
_MAX_RUNTIME_DIR = 38  # Ray adds up to 66 bytes to it for a Unix socket, whose name may have 107


class _Kind(NamedTuple):
    """What is done alike for each service. `grace` is how long it may take to stop by itself, in seconds."""

    url: Callable[[Services], str]
    probe: Probe
    ready: Probe
    timeout: float
    grace: float


# In the order in which they start. SeaweedFS waits 15 s for its own connections before it stops; its writes have
# reached the system by then, so it is given less.
_KINDS = {
    "s3": _Kind(lambda services: services.s3_url, probe_s3, prepare_s3, 60.0, 1.0),
    "mlflow": _Kind(lambda services: services.mlflow_url, probe_mlflow, probe_mlflow, 120.0, 8.0),
    "ray": _Kind(lambda services: services.dashboard_url, probe_ray, probe_ray, 120.0, 10.0),
}


def up(settings: ServiceSettings, say: Say = print) -> Services:
    """Start the three services and wait until each answers. Returns those that run already, if they do.

    Raises UserError for a taken port, a folder or disk that cannot be used or a missing package, ServiceError if a
    service does not come up. In both cases, and on Ctrl-C, what was started is stopped again.
    """
    home = settings.home.expanduser().absolute()
    _check_home(home)
    with _locked(home):
        running = _running(home, settings, say)
        if running is not None:
            return running
        commands.require_installed()
        plan, spare = _plan(settings, home)
        return _start_all(plan, spare, settings.num_cpus, say)


def _running(home: Path, settings: ServiceSettings, say: Say) -> Services | None:
    """Return the recorded services if all run. What a crash or a reboot left behind is cleaned up first."""
    recorded = load_services(home)
    if recorded is None:
        return None
    dead = [record.service for record in recorded.processes if not processes.is_alive(record)]
    if recorded.complete and not dead:
        _check_same(settings, recorded)
        say(f"Already running since {recorded.started:%Y-%m-%d %H:%M} UTC: {_addresses(recorded)}.")
        return recorded
    if recorded.complete and len(dead) < len(recorded.processes):
        logs = ", ".join(str(_log(home, service)) for service in dead)
        raise ServiceError(f"No longer running: {', '.join(dead)} (see {logs}). Run `agmm down`, then `agmm up`.")
    say("The services were not stopped in order (a reboot, a crash?): cleaning up.")
    _stop_all(recorded, lambda _: None)
    return None


def _check_same(settings: ServiceSettings, running: Services) -> None:
    """Refuse to call services that speak plain text, listen elsewhere or tell more, those that were asked for."""
    asked = settings.model_fields_set & {"host", "tls", "metrics"}
    if differing := sorted(name for name in asked if getattr(settings, name) != getattr(running, name)):
        raise UserError(
            f"The services run with another --{' and --'.join(differing)}: {_addresses(running)}. "
            "Run `agmm down`, then `agmm up` again."
        )


def _addresses(services: Services) -> str:
    return ", ".join(f"{name} {kind.url(services)}" for name, kind in _KINDS.items())


def _log(home: Path, service: str) -> Path:
    return service_dir(home) / f"{service}.log"


def _check_home(home: Path) -> None:
    """Make the folders and see that they can be written to."""
    if set("?#%") & set(str(home)):
        raise UserError(f"The home folder {home} has ?, # or % in its name, which a data base address cannot carry.")
    folder = service_dir(home)
    try:
        for path in (folder, folder / "s3"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        credentials.write_private(folder / "probe", "may this be written?")
        (folder / "probe").unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"The home folder {home} cannot be written to: {error}. Set AGMM_HOME to another.") from error
    if free < _MIN_FREE:
        raise UserError(
            f"The disk of {home} has {free / 2**20:.0f} MiB free; the services need at least "
            f"{_MIN_FREE / 2**20:.0f} MiB. Make room, or set AGMM_HOME to another folder."
        )


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Allow one `up` or `down` at a time."""
    with (service_dir(home) / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"Another `agmm up` or `agmm down` is at work in {home}. Wait for it.") from error
        yield


def _plan(settings: ServiceSettings, home: Path) -> tuple[Services, list[int]]:
    """Settle ports, runtime folder and marker of services about to start, and the ports for their own use."""
    fields = list(Ports.model_fields)
    asked: dict[str, int] = {name: getattr(settings, f"{name}_port") for name in fields}
    _check_ports(asked, settings.host)
    free = processes.free_ports(commands.SPARE_PORTS + len(fields), but=asked.values())
    spare = free[: commands.SPARE_PORTS]
    found = dict(zip(fields, free[commands.SPARE_PORTS :], strict=True))
    services = Services(
        home=home,
        bucket=settings.bucket,
        ports=Ports(**{name: asked[name] or found[name] for name in fields}),
        marker=secrets.token_hex(16),
        runtime_dir=_runtime_dir(),
        started=datetime.now(UTC),
        sockets=commands.s3_sockets(spare),
        host=settings.host,
        tls=settings.tls,
        metrics=settings.metrics,
    )
    return services, spare


def _check_ports(asked: dict[str, int], host: str) -> None:
    if not processes.port_is_free(0, host):
        raise UserError(f"--host {host} is no address of this machine. `ip address` lists those it has.")
    used = [port for port in asked.values() if port]
    for name, port in asked.items():
        option = f"--{name}-port"
        if port and used.count(port) > 1:
            raise UserError(f"Port {port} is given to more than one service. Choose another with {option}; 0 is any.")
        if port and not all(processes.port_is_free(port, each) for each in (host, LOOPBACK)):
            raise UserError(
                f"Port {port}, for {name}, is in use by {processes.listener(port)}. "
                f"Stop that, or choose another with {option}; 0 is any free one."
            )


def _runtime_dir() -> Path:
    """Make a new folder, for this user alone, with a name short enough for Unix sockets."""
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp"]):  # noqa: S108
        if len(parent) + len("/agmm-12345678") <= _MAX_RUNTIME_DIR and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="agmm-", dir=parent))
    raise UserError(
        f"The folder for temporary files, {tempfile.gettempdir()}, has too long a name for Unix sockets, and /tmp "
        "cannot be written to. Set TMPDIR to a folder with a name of at most 24 bytes."
    )


def _start_all(services: Services, spare: list[int], num_cpus: int | None, say: Say) -> Services:
    """Start all three, then wait for each. `state.json` is ahead of every step: an interrupted start can be undone."""
    try:
        known = credentials.load_or_create(services.home, services.bucket, services.host)
        _save(services)
        for service in _KINDS:
            say(f"Starting {service} ...")
            services = _started(services, _start(service, services, spare, num_cpus, known))
        for record in services.processes:
            kind = _KINDS[record.service]
            detail = wait_ready(kind.ready, services, record, _log(services.home, record.service), kind.timeout)
            say(f"{record.service} is ready: {kind.url(services)} ({detail})")
        return _save(services.model_copy(update={"complete": True}))
    except OSError as error:
        _stop_all(services, say)
        raise UserError(f"The home folder {services.home} cannot be used: {error}.") from error
    except BaseException:
        _stop_all(services, say)
        raise


def _start(
    service: str, services: Services, spare: list[int], num_cpus: int | None, known: credentials.Secrets
) -> ProcessRecord:
    environment_of = commands.service_environment(services)
    if service == "s3":
        command = commands.s3_command(services, spare)
    elif service == "mlflow":
        command, environment_of = commands.mlflow_command(services), commands.mlflow_environment(services, known)
    else:
        command, environment_of = commands.ray_command(services, spare, num_cpus), commands.ray_environment(services)
    folder = service_dir(services.home)
    return processes.start(service, command, log=_log(services.home, service), cwd=folder, environment=environment_of)


def _started(services: Services, record: ProcessRecord) -> Services:
    return _save(services.model_copy(update={"processes": (*services.processes, record)}))


def _save(services: Services) -> Services:
    credentials.write_private(state_file(services.home), services.model_dump_json(indent=2))
    return services


def down(home: Path, say: Say = print) -> bool:
    """Stop everything that `up` started in `home`, jobs and workers included. False if nothing was running."""
    home = home.expanduser().absolute()
    if not state_file(home).exists():
        say("Nothing is running.")
        return False
    with _locked(home):
        recorded = load_services(home)
        return recorded is not None and _stop_all(recorded, say)


def _stop_all(services: Services, say: Say) -> bool:
    """In the reverse order, so that what ends can still write to what it depends on. Then what lost its parent."""
    stopped = 0
    for record in reversed(services.processes):
        was_alive = processes.stop(record, _KINDS[record.service].grace)
        stopped += was_alive
        say(f"{record.service} {'stopped' if was_alive else 'had ended before'} (pid {record.pid})")
    left = processes.stop_marked(services.marker, 3.0)
    if left:
        say(f"{left} left-over process{'es' if left > 1 else ''} stopped")
    shutil.rmtree(services.runtime_dir, ignore_errors=True)
    for socket in services.sockets:
        socket.unlink(missing_ok=True)
    state_file(services.home).unlink(missing_ok=True)
    return stopped + left > 0


def status(home: Path) -> list[ServiceStatus]:
    """Return each service's state, after asking it. Empty if nothing is recorded as running."""
    recorded = load_services(home)
    if recorded is None:
        return []
    return [_status(recorded, record) for record in recorded.processes]


def _status(services: Services, record: ProcessRecord) -> ServiceStatus:
    kind = _KINDS[record.service]
    if processes.is_alive(record):
        state, detail = describe(kind.probe, services)
    else:
        state, detail = "dead", f"see {_log(services.home, record.service)}; run `agmm down`, then `agmm up`"
    return ServiceStatus(service=record.service, state=state, url=kind.url(services), pid=record.pid, detail=detail)
