"""Tell Ray that this node is about to go, so that a run saves and goes on without it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cluster.errors import ServiceError

_MESSAGE = "the node is taken away"


def leave(seconds: int, say: Callable[[str], None] = print) -> None:
    """Announce that this node goes in so many seconds, and wait for them: for use where a node's end is announced.

    Kubernetes runs it before it ends a pod, Slurm's script on Slurm's signal. Ray Train hears of it as a preemption.
    Raises ServiceError where no Ray runs on this node, or Ray does not let it go.
    """
    address, node = _here()
    accepted, why = _drain(address, node, seconds)
    if not accepted:
        raise ServiceError(f"Ray at {address} does not let node {node[:12]} go: {why}")
    say(f"node {node[:12]} leaves Ray at {address} in {seconds} s")
    time.sleep(seconds)


def _here() -> tuple[str, str]:
    """The address of the head that this machine's Ray node belongs to, and the node's id."""
    os.environ.setdefault("RAY_LOG_TO_DRIVER", "0")
    import ray

    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ServiceError(f"No Ray node runs here that could leave: {error}") from error
    try:
        context = ray.get_runtime_context()
        return str(context.gcs_address), str(context.get_node_id())
    finally:
        ray.shutdown()


def _drain(address: str, node: str, seconds: int) -> tuple[bool, str]:
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    deadline_ms = int((time.time() + seconds) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(node, reason, _MESSAGE, deadline_ms)
    return bool(accepted), str(why)
