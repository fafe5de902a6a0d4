"""One rank of `agmm bench scale`: a training step without exchanges, and the exchanges that it would have."""

from __future__ import annotations

import time
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from agmm.exchange.exchange import Averaged, Bucket, completed
from agmm.exchange.sign import latent_weights
from agmm.loop import train_step
from pipelines.benchmarks import comm_rank
from pipelines.benchmarks.comm_rank import Batch, batch_of, config_of, network_of, recorded
from pipelines.network import build_optimizer


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """What `comm_rank.measure` finds of each kind, and `profile`; every rank calls it."""
    return comm_rank.measure(job) | {"profile": profile(job)}


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """The buckets of DDP in the order in which it exchanges them; of each step when they were ready, and its end."""
    batch = batch_of(job["size"])
    config = config_of(job["size"], "fp32")
    network, buckets = recorded(config, batch)
    signed = {id(weight) for weight in latent_weights(network)}
    told = []
    for bucket in buckets:
        latent = [weight for weight in bucket.weights if id(weight) in signed]
        told.append([len(bucket.memory), [[len(weight), weight[0].numel()] for weight in latent]])
    return {"buckets": told, "steps": _steps(job["size"], batch, job["steps"])}


def _steps(size: dict[str, Any], batch: Batch, count: int) -> list[list[float]]:
    """Seconds after its start at which each bucket of a step is ready, and its end; nobody waits for anybody."""
    network = network_of(config_of(size, "fp32"))
    model, optimizer = DistributedDataParallel(network), build_optimizer(network, config_of(size, "fp32").optim)
    at: list[float] = []

    def note(_: None, bucket: Bucket) -> Averaged:
        at.append(time.perf_counter())
        return completed(bucket.buffer())

    # a lambda, because DDP would have an annotation be its own class
    model.register_comm_hook(None, lambda state, bucket: note(state, bucket))
    found = []
    for turn in range(count + 2):
        dist.barrier()
        at.clear()
        began = time.perf_counter()
        train_step(model, optimizer, *batch)
        if turn > 1:  # DDP changes its buckets after the first
            found.append([each - began for each in (*at, time.perf_counter())])
    return found
