"""What each node of a Ray cluster is, seen from a task on it. Runs as a program of its own, which prints JSON.

A program, because Ray's client keeps trying to connect where it cannot, and can only be stopped with its process.
`look` and `now` travel to the nodes by value, so that a node with another version of this code, or none, answers too.
For that they need nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

_PACKAGES, _SOURCES = ("ray", "torch", "agmm"), ("agmm", "pipelines", "cluster")
_SHM = Path("/dev/shm")  # noqa: S108
_TRIPS = 3  # of the clock's question: the shortest counts
_PATIENCE_S = 15.0


def look() -> dict[str, Any]:
    """Versions, the digest of our sources, and what is free: bytes in `cache`, `home`, `shm` and `memory`."""
    cache = os.environ.get("AGMM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "agmm").expanduser()
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "code": _digest(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cache": _disk(Path(cache)),
        "home": _disk(Path(os.environ.get("AGMM_HOME", ".agmm"))),
        "shm": shutil.disk_usage(_SHM).free if _SHM.is_dir() else None,
        "memory": free_memory(),
    }


def now() -> float:
    """Seconds since the epoch, by this node's clock."""
    return time.time()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _digest() -> str:
    """Of our Python sources as a worker would import them: a version may be the same and the code another."""
    digest = hashlib.sha256()
    for name in _SOURCES:
        spec = importlib.util.find_spec(name)
        folder = Path(spec.origin).parent if spec and spec.origin else Path("missing", name)
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


def _disk(folder: Path) -> dict[str, Any]:
    """A folder that may not be there yet, and the free bytes of the disk that it would be on."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return {"path": str(folder.absolute()), "free": shutil.disk_usage(there).free}


def free_memory() -> int:
    """Bytes that processes may still take here: of the machine, and of every control group around this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = [int(lines["MemAvailable"].split()[0]) * 1024]
    own = next((line[4:] for line in Path("/proc/self/cgroup").read_text().split() if line.startswith("0::/")), "")
    group = Path("/sys/fs/cgroup", own)
    for folder in (group, *group.parents):
        if (left := _left_in(folder)) is not None:
            free.append(left)
    return max(0, min(free))


def _left_in(group: Path) -> int | None:
    """Bytes up to a control group's limit (version 2); the files that it has cached count as free."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))


def main() -> None:
    """Print a row of every node that is alive: `node`, `resources`, and `look` and `skew`, or `error`."""
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    output = sys.stdout
    sys.stdout = sys.stderr  # Ray may print
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    looks = {node["NodeID"]: _on(node["NodeID"], look) for node in nodes}
    rows = [_row(node, looks[node["NodeID"]]) for node in nodes]
    print(json.dumps({"nodes": rows, "driver": look()}), file=output, flush=True)
    ray.shutdown()


def _on(node: str, function: Any) -> Any:
    """A task on one node, that needs no free core there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned).remote()


def _row(node: dict[str, Any], answer: Any) -> dict[str, Any]:
    import ray

    row = {"node": f"{node['NodeManagerAddress']} {node['NodeID'][:6]}", "resources": node["Resources"]}
    try:
        row["look"] = ray.get(answer, timeout=_PATIENCE_S)
        row["skew"] = min((_skew(node["NodeID"]) for _ in range(_TRIPS)), key=lambda trip: trip[1])
    except Exception as error:  # noqa: BLE001 (whatever a task ends with is this node's answer)
        row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def _skew(node: str) -> tuple[float, float]:
    """Seconds that a node's clock is ahead of this one's, and how far off that may be: half the way there and back."""
    import ray

    asked = time.time()
    there = ray.get(_on(node, now), timeout=_PATIENCE_S)
    answered = time.time()
    return there - (asked + answered) / 2, (answered - asked) / 2
