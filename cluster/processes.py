"""Start processes that outlive their starter, and stop them with everything that they started."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import ServiceError
from cluster.settings import LOOPBACK, ProcessRecord

if TYPE_CHECKING:
    import psutil

MARKER = "AGMM_SERVICES"
_children: dict[int, subprocess.Popen[bytes]] = {}  # kept, so that those of this very process leave no zombies


def start(
    service: str, command: Sequence[str], *, log: Path, cwd: Path, environment: Mapping[str, str]
) -> ProcessRecord:
    """Start `command` in a session of its own, out of reach of the terminal's Ctrl-C and hang-up; output to `log`."""
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(environment),
                start_new_session=True,
                umask=0o077,
            )
    except OSError as error:
        raise ServiceError(f"{service} cannot be started: {command[0]}: {error}.") from error
    _children[child.pid] = child
    return ProcessRecord(service=service, pid=child.pid, created=_created(child.pid))


def _created(pid: int) -> float:
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def find(record: ProcessRecord) -> psutil.Process | None:
    """Return the recorded process, or None if it has ended (a zombie has) or its number is another one's by now."""
    import psutil

    child = _children.get(record.pid)
    if child is not None and child.poll() is not None:
        return None
    try:
        process = psutil.Process(record.pid)
        # Two seconds: the kernel counts from boot, and the time of the boot shifts when the clock is set.
        same = abs(process.create_time() - record.created) < 2.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def is_alive(record: ProcessRecord) -> bool:
    """Tell whether the recorded process still runs."""
    return find(record) is not None


def stop(record: ProcessRecord, grace: float) -> bool:
    """End the recorded process and its descendants. False if it had ended before.

    The process is asked first, alone: told all at once, Ray's parts wait for one another. What is left after `grace`
    seconds is asked too, and killed two seconds later.
    """
    import psutil

    process = find(record)
    if process is None:
        _reap(record.pid)
        return False
    family = [process, *_descendants(process)]
    _each([process], "terminate")
    _, left = psutil.wait_procs(family, timeout=grace)
    _end(left, 2.0)
    _reap(record.pid)
    return True


def stop_marked(marker: str, grace: float) -> int:
    """End what still carries this marker in its environment: grandchildren that lost their parent. How many there were.

    This process and those above it are left alone: `agmm down` may be called from a job of these very services.
    """
    import psutil

    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = [process for process in psutil.process_iter() if process.pid not in spared and _carries(process, marker)]
    _end(found, grace)
    return len(found)


def _carries(process: psutil.Process, marker: str) -> bool:
    import psutil

    try:
        return process.environ().get(MARKER) == marker and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False  # another user's, or gone: neither is ours


def _end(family: Iterable[psutil.Process], grace: float) -> None:
    """SIGTERM, wait, then SIGKILL for the rest and for what it started while it was asked to stop."""
    import psutil

    asked = list(family)
    _each(asked, "terminate")
    _, left = psutil.wait_procs(asked, timeout=grace)
    late = [child for process in left for child in _descendants(process)]
    _each([*left, *late], "kill")
    psutil.wait_procs([*left, *late], timeout=5.0)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    import psutil

    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _each(processes: Iterable[psutil.Process], action: str) -> None:
    import psutil

    for process in processes:
        try:
            getattr(process, action)()
        except psutil.NoSuchProcess:
            continue


def _reap(pid: int) -> None:
    child = _children.pop(pid, None)
    if child is not None:
        child.poll()


def free_ports(count: int, *, but: Iterable[int] = ()) -> list[int]:
    """Find as many different free ports of the loopback interface, none of `but`. Free now: nothing reserves them."""
    taken = set(but)
    sockets = [socket.socket() for _ in range(count + len(taken))]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        found = [each.getsockname()[1] for each in sockets]
        return [port for port in found if port not in taken][:count]
    finally:
        for each in sockets:
            each.close()


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    """Tell whether a server could listen there. Listening on any interface counts as taken."""
    with socket.socket() as probe:
        # As servers do: without it a port whose last connections are in TIME_WAIT looks taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listener(port: int) -> str:
    """Tell who listens there, for an error message: `name (pid 7)`, or that it cannot be told."""
    import psutil

    with contextlib.suppress(psutil.Error):  # some systems show other processes' sockets to root only
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "a process that cannot be named from here"
