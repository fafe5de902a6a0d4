"""The checks of a cluster's nodes: does Ray let us in, and are they alike, in time, and with enough room?

Each check returns (status, detail, advice), status one of pass, warn and fail. `Nodes` asks once, for all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from cluster import node_probe
from cluster.errors import ServiceError

Outcome = tuple[Literal["pass", "warn", "fail"], str, str]
Row = Mapping[str, Any]

LIMIT_S = 60.0  # Python and Ray start on every node
# Runs of several drivers are told apart by time: the first value of a step stays.
_SKEW_WARN_S = 1.0
# `agmm runs reap` closes runs without a heartbeat for 5 minutes, and S3 refuses signatures of other times (AWS: 15).
_SKEW_FAIL_S = 300.0
_REFUSED, _SILENT = "InvalidAuthToken", "Failed to connect to GCS"
_GIB = 2**30
_LEAST_DISK = _GIB  # journals, Ray's state and logs
_LEAST_SHM = 75 * 10**6  # Ray's own least for its store of objects
_SHM = "/dev/shm"  # noqa: S108
_PROGRAM = "from cluster.node_probe import main; main()"  # not -m: Ray would give workers this folder to import from


class Nodes:
    """The nodes of the Ray at `address`, or this machine as the one node of a run's own Ray where there is none."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self.failed = False  # to answer; it is not asked again
        self._answer: dict[str, Any] | None = None

    def ask(self) -> dict[str, Any]:
        """`nodes`, a row of each, and `driver`, this machine's `look`. Raises ServiceError where Ray keeps us out."""
        if self._answer is None:
            self.failed = True
            self._answer = _asked(self.address) if self.address else _local()
            self.failed = False
        return self._answer

    def rows(self) -> list[Row]:
        """The nodes that answered. Raises ServiceError where none did."""
        rows = [row for row in self.ask()["nodes"] if "error" not in row]
        if not rows:
            raise ServiceError("No node of the Ray cluster took a task. See the check `ray`.")
        return rows


def _local() -> dict[str, Any]:
    here = node_probe.look()
    row = {"node": "this machine", "resources": {"CPU": float(here["cores"])}, "look": here, "skew": (0.0, 0.0)}
    return {"nodes": [row], "driver": here}


def _asked(address: str) -> dict[str, Any]:
    """What the program of `node_probe` finds."""
    command = [sys.executable, "-c", _PROGRAM]
    environment = {**os.environ, "RAY_ADDRESS": address}
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment) as program,
    ):
        timer = threading.Timer(LIMIT_S, program.kill)
        timer.start()
        try:
            last = _last_words(program, address)
        finally:
            program.kill()
            timer.cancel()
        output.seek(0)
        answer = output.read()
    if not answer:
        raise ServiceError(
            f"Cannot use the Ray head at {address} ({last or f'no answer within {LIMIT_S:.0f} s'}). "
            "Check `agmm status` and RAY_ADDRESS, and that Python and Ray are the same versions here and there."
        )
    return dict(json.loads(answer))


def _last_words(program: subprocess.Popen[str], address: str) -> str:
    """What it complains of until it ends; Ray's client would repeat for 20 seconds what cannot get better."""
    assert program.stderr is not None
    last = ""
    for line in program.stderr:
        last = line.strip() or last
        if _REFUSED in line:
            raise ServiceError(
                f"The Ray head at {address} refuses the token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the "
                "file with its token; for a head of `agmm up`, use the same AGMM_HOME."
            )
        if _SILENT in line:
            raise ServiceError(
                f"No Ray head answers at {address}. Start one (`agmm up`), see that RAY_TLS_CA_CERT is its own if it "
                "speaks TLS, or unset RAY_ADDRESS to run on this machine."
            )
    return last


def ray_answers(nodes: Nodes) -> Outcome:
    """Ray lets a task onto every node."""
    found = nodes.ask()["nodes"]
    if silent := [f"{row['node']} ({row['error']})" for row in found if "error" in row]:
        return "fail", f"no task runs on {'; '.join(silent)}", "Look at that node's raylet log, or take it away."
    if nodes.address is None:
        return "pass", "no RAY_ADDRESS: a run starts a Ray of its own here", ""
    return "pass", f"{len(found)} node{'s' if len(found) > 1 else ''} at {nodes.address} took a task", ""


def versions(nodes: Nodes) -> Outcome:
    """Python, ray, torch and agmm are the same on all nodes as here, and agmm's sources are."""
    here = _signature(nodes.ask()["driver"])
    wrong = []
    for row in nodes.rows():
        there = _signature(row["look"])
        changed = [f"{name} {value}, here {here[name]}" for name, value in there.items() if value != here[name]]
        wrong += [f"{row['node']} has {'; '.join(changed)}"] if changed else []
    if wrong:
        advice = (
            "Install the same versions on every node: pip install -c constraints.txt, from the same commit of agmm."
        )
        return "fail", ". ".join(wrong) + ".", advice
    return "pass", ", ".join(f"{name} {value}" for name, value in here.items()), ""


def _signature(look: Row) -> dict[str, str]:
    return {**look["versions"], "agmm's code": look["code"]}


def clocks(nodes: Nodes) -> Outcome:
    """Every node's clock is near this one's."""
    worst = max(nodes.rows(), key=lambda row: abs(row["skew"][0]))
    return judge_clock(f"the clock of {worst['node']}", *worst["skew"])


def judge_clock(whose: str, ahead: float, doubt: float) -> Outcome:
    """What a clock that is `ahead` seconds of this machine's, give or take `doubt`, means."""
    surely = abs(ahead) - doubt
    if surely <= _SKEW_WARN_S:
        return "pass", f"{whose} is within {abs(ahead) + doubt:.2g} s of this one", ""
    words = f"{whose} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this machine's."
    if surely > _SKEW_FAIL_S:
        why = "S3 refuses signatures of another time, and `agmm runs reap` takes live runs for gone."
        return "fail", f"{words} {why}", "Set both clocks by NTP (chronyc makestep, timedatectl set-ntp true)."
    return "warn", f"{words} Rows of metrics may be out of order.", "Set both clocks by NTP (timedatectl set-ntp true)."


def disk(nodes: Nodes, cache_needs: int = 0) -> Outcome:
    """Each node's cache has room for the data set that is to be staged, and its home for journals and logs."""
    needs = {"cache": max(cache_needs, _LEAST_DISK), "home": _LEAST_DISK}
    advice = "Free some space (`agmm data cache --clear`), or set {} to a folder on a larger disk."
    for row in nodes.rows():
        for kind, needed in needs.items():
            place = row["look"][kind]
            if place["free"] < needed:
                words = (
                    f"{place['path']} on {row['node']} has {_size(place['free'])} free, and {_size(needed)} are needed."
                )
                return "fail", words, advice.format("AGMM_CACHE" if kind == "cache" else "AGMM_HOME")
    least = min(row["look"][kind]["free"] for row in nodes.rows() for kind in needs)
    return "pass", f"at least {_size(least)} free on every node's cache and home", ""


def shared_memory(nodes: Nodes, needed: int = 0) -> Outcome:
    """Shared memory has room for Ray's objects and what loaders hand over in it: `needed` bytes a node."""
    wanted = _LEAST_SHM + needed
    known = [(row["look"]["shm"], row["node"]) for row in nodes.rows() if row["look"]["shm"] is not None]
    if not known:
        return "pass", "none here: Ray and torch use files", ""
    least, where = min(known)
    if least < wanted:
        words = f"{_SHM} on {where} has {_size(least)} free; Ray and the loaders need {_size(wanted)}."
        return (
            "fail",
            words,
            "Give the container more (docker run --shm-size=2g), or: mount -o remount,size=2g /dev/shm.",
        )
    return "pass", f"{_SHM} has {_size(least)} free, {_size(wanted)} are needed", ""


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def node_checks(nodes: Nodes, *, cache_needs: Callable[[], int], shm_needs: Callable[[], int]) -> dict[str, Any]:
    """The checks of this module by name."""
    return {
        "ray": lambda: ray_answers(nodes),
        "versions": lambda: versions(nodes),
        "clocks": lambda: clocks(nodes),
        "disk": lambda: disk(nodes, cache_needs()),
        "shared memory": lambda: shared_memory(nodes, shm_needs()),
    }
