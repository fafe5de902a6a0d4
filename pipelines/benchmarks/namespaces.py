"""Nodes with addresses of their own on this machine: network namespaces, joined by links of a given rate.

It takes Linux, root and iproute2. Everything is in namespaces, the bridge too, so nothing of the machine's own network
is touched. They are named after the process that makes them, go with the context, and those of a process that was
killed go when the next one makes some.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import ServiceError, UserError

INTERFACE = "eth0"  # of every node
RATES_MBIT = (1.0, 2000.0)
_PREFIX = "agmm"
_MOST = 64
_TIMEOUT_S = 20.0
_BURST_S = 0.0005  # of its rate a link may send at once, and two packets at the least
_PACKETS = 3100
_QUEUE_S = 0.2  # of its rate may wait, so that nothing is dropped


@dataclass(frozen=True)
class Node:
    """A namespace, and the address of its end of the link."""

    name: str
    address: str

    def command(self, *words: str) -> list[str]:
        """What runs a command there: it is the process itself that runs, so a signal reaches it."""
        return ["ip", "netns", "exec", self.name, *words]


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    return f"{' and '.join(missing)} of iproute2 is not installed" if missing else ""


@contextmanager
def network(count: int, rate_mbit: float | None = None) -> Iterator[list[Node]]:
    """So many nodes around one bridge, each link with that rate each way; without one as fast as the machine is.

    Processes inside are the caller's, and are to end before the context does.

    Raises UserError where there can be none here, or for a rate or number out of bounds; ServiceError where one cannot
    be made.
    """
    if reason := why_not():
        raise UserError(f"No nodes can be made on this machine: {reason}.")
    _check(count, rate_mbit)
    remove_stale()
    own = f"{_PREFIX}-{os.getpid()}-{_started(os.getpid())}"
    with ExitStack() as ends:
        hub = _namespace(f"{own}-hub", ends)
        _ip("-n", hub, "link", "add", "hub", "type", "bridge")
        _ip("-n", hub, "link", "set", "hub", "up")
        nodes = [_node(f"{own}-{index}", hub, index, ends) for index in range(count)]
        if rate_mbit is not None:
            for index, node in enumerate(nodes):
                _shape(node.name, INTERFACE, rate_mbit)
                _shape(hub, f"port{index}", rate_mbit)
        yield nodes


def _check(count: int, rate_mbit: float | None) -> None:
    if not 1 <= count <= _MOST:
        raise UserError(f"{count} nodes were asked for; there can be 1 to {_MOST}.")
    least, most = RATES_MBIT
    if rate_mbit is not None and not least <= rate_mbit <= most:
        raise UserError(f"A link of {rate_mbit:g} Mbit/s was asked for; it can have {least:g} to {most:g}.")


def remove_stale() -> list[str]:
    """Remove what processes left that are dead; returns its names."""
    if why_not():
        return []
    names = [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(f"{_PREFIX}-")]
    stale = [name for name in names if not _is_alive(name)]
    for name in stale:
        _remove(name)
    return stale


def _is_alive(name: str) -> bool:
    """Whether the process is there that a namespace is named after; of other names it is not known, and they stay."""
    parts = name.split("-")
    if len(parts) != 4 or not (parts[1].isdigit() and parts[2].isdigit()):
        return True
    return _started(int(parts[1])) == int(parts[2])


def _started(pid: int) -> int:
    """When a process was started, in ticks since the boot: a pid comes again. -1 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return -1


def _namespace(name: str, ends: ExitStack) -> str:
    ends.callback(_remove, name)  # first, since an interrupt may come between the two
    _ip("netns", "add", name)
    _ip("-n", name, "link", "set", "lo", "up")
    return name


def _node(name: str, hub: str, index: int, ends: ExitStack) -> Node:
    _namespace(name, ends)
    node, port = Node(name, f"10.77.0.{index + 1}"), f"port{index}"
    _ip("link", "add", INTERFACE, "netns", name, "type", "veth", "peer", "name", port, "netns", hub)
    _ip("-n", hub, "link", "set", port, "master", "hub", "up")
    _ip("-n", name, "address", "add", f"{node.address}/24", "dev", INTERFACE)
    _ip("-n", name, "link", "set", INTERFACE, "up")
    return node


def _shape(namespace: str, device: str, rate_mbit: float) -> None:
    """Have a device send at a rate: a token bucket that is small, so that short messages are not sent for nothing."""
    bits = rate_mbit * 1e6
    burst, queue = max(_PACKETS, round(bits / 8 * _BURST_S)), max(1 << 20, round(bits / 8 * _QUEUE_S))
    bucket = ("rate", f"{round(bits)}bit", "burst", str(burst), "limit", str(queue))
    _call("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *bucket)


def _remove(name: str) -> None:
    """Remove a namespace that may be there, and with it its devices and their other ends."""
    subprocess.run(
        ["ip", "netns", "delete", name], check=False, capture_output=True, start_new_session=True, timeout=_TIMEOUT_S
    )


def _ip(*words: str) -> str:
    return _call("ip", *words)


def _call(*command: str) -> str:
    """Run a command to its end, whatever the terminal interrupts."""
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, start_new_session=True, timeout=_TIMEOUT_S
    )
    if ended.returncode:
        raise ServiceError(f"`{' '.join(command)}` ended with {ended.returncode}: {ended.stderr.strip()}")
    return ended.stdout
