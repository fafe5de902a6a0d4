"""Is there room for the recipe's workers on the nodes, and in their shared memory? Nodes are rows of plain values.

A row: `node`, its name; `resources`, what Ray has there of `CPU` and `GPU`; `look`, what is free, `memory` in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.config import RunConfig
from pipelines.doctor.check import Outcome

Nodes = Sequence[Mapping[str, Any]]

_AHEAD = 3  # batches that a process of torch's loader has made and not handed over, and the one that is used


def share(config: RunConfig) -> int:
    """Images of a step that the most loaded worker takes, with as many workers as the recipe wants."""
    return -(-config.data.batch_size // config.run.most_workers)


def places(config: RunConfig, node: Mapping[str, Any]) -> int:
    """Workers that a node has room for."""
    resources = node["resources"]
    if config.run.device == "cuda" or (config.run.device == "auto" and resources.get("GPU")):
        return int(resources.get("GPU", 0))
    return int(resources.get("CPU", 0)) // config.run.cpus_per_worker


def most_together(config: RunConfig, node: Mapping[str, Any]) -> int:
    """Workers that may come to share a node: as many as fit, at least one, at most all."""
    return max(1, min(config.run.most_workers, places(config, node)))


def workers(config: RunConfig, nodes: Nodes, *, own_ray: bool) -> Outcome:
    """The nodes have cores, or GPUs, for the recipe's workers. A Ray of the run's own makes places of its own."""
    there, least, most = sum(places(config, node) for node in nodes), config.run.least_workers, config.run.most_workers
    each = f"{config.run.cpus_per_worker} core{'s' if config.run.cpus_per_worker > 1 else ''}"
    if own_ray and config.run.device != "cuda" and there < most:
        words = f"{most} workers of {each} share {nodes[0]['resources'].get('CPU', 0):.0f} cores."
        return "warn", words, "They work, slower; lower run.workers or run.cpus_per_worker."
    if there < least:
        words = f"the nodes have room for {there} of at least {least} workers: the run would wait."
        return "fail", words, "Add nodes, or lower run.workers or run.cpus_per_worker."
    if there < most:
        return "pass", f"room for {there} workers of {each}, of {least} to {most} wanted", ""
    return "pass", f"room for {there} workers, {most} wanted", ""


def shared_memory_needs(config: RunConfig) -> int:
    """Bytes of /dev/shm that the loaders of a node's workers may fill: torch's processes pass batches through it."""
    if config.data.loader == "ffcv" or config.data.threads == 1 or config.model.in_chans == 2:
        return 0
    batch = share(config) * 3 * config.data.resolution**2
    return config.run.most_workers * config.data.threads * _AHEAD * batch
