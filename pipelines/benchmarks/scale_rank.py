"""One rank of `agmm bench scale`: a training step without exchanges, and the exchanges that it would have."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from agmm.exchange.exchange import Averaged, Bucket, completed
from agmm.exchange.sign import latent_weights
from agmm.loop import train_step
from pipelines.benchmarks.comm_rank import (
    batch_of,
    config_of,
    count_bytes,
    exchanged,
    kind_of,
    network_of,
    once,
    recorded,
    timed,
)
from pipelines.network import build_optimizer

_MESSAGES = 5  # a round; and exchanges of one rank alone


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Rounds in which a step without exchanges and each kind have their turn; every rank calls it.

    So what else the machine does in a round hits all of them.
    """
    size = job["size"]
    batch, alone = batch_of(size), _alone(size)
    network, buckets = recorded(config_of(size, "fp32"), batch)
    kinds = {name: kind_of(config_of(size, name), network, batch) for name in job["kinds"]}
    for kind in kinds.values():
        count_bytes(kind, buckets)
    steps, message, few = [], list[float](), torch.zeros(job["small"])
    for turn in range(job["rounds"] + 1):
        steps.append(alone())
        message += [timed(lambda: dist.all_reduce(few))[0] for _ in range(_MESSAGES)]
        for kind in kinds.values():
            seconds = once(kind, buckets)
            if turn:  # the first warms up
                kind.seconds.append(seconds)
    about = {"buckets": _told(size), "steps": steps[1:], "message": message}
    return about | {name: kind.answer() for name, kind in kinds.items()}


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """Steps without exchanges, and what one rank's processor does for those of each kind, with nobody to send to."""
    size = job["size"]
    alone = _alone(size)
    steps = [alone() for _ in range(job["steps"] + 1)][1:]
    network, buckets = recorded(config_of(size, "fp32"), batch_of(size))
    kinds = {name: kind_of(config_of(size, name), network, batch_of(size)) for name in job["kinds"]}
    for kind in kinds.values():
        count_bytes(kind, buckets)
    work = {name: [exchanged(kind, buckets)[1] for _ in range(_MESSAGES + 1)][1:] for name, kind in kinds.items()}
    return {"buckets": _told(size), "steps": steps, "work": work}


def _told(size: dict[str, Any]) -> list[list[Any]]:
    """The buckets of DDP in the order in which it exchanges them: numbers, and `[O, L]` of binary weights."""
    network, buckets = recorded(config_of(size, "fp32"), batch_of(size))
    signed = {id(weight) for weight in latent_weights(network)}
    told = []
    for bucket in buckets:
        latent = [weight for weight in bucket.weights if id(weight) in signed]
        told.append([len(bucket.memory), [[len(weight), weight[0].numel()] for weight in latent]])
    return told


def _alone(size: dict[str, Any]) -> Callable[[], list[float]]:
    """A step in which nobody waits for anybody: seconds after its start at which each bucket is ready, and its end."""
    batch, config = batch_of(size), config_of(size, "fp32")
    network, at = network_of(config), list[float]()
    model, optimizer = DistributedDataParallel(network), build_optimizer(network, config.optim)

    def note(_: None, bucket: Bucket) -> Averaged:
        at.append(time.perf_counter())
        return completed(bucket.buffer())

    # a lambda, because DDP would have an annotation be its own class
    model.register_comm_hook(None, lambda state, bucket: note(state, bucket))

    def step() -> list[float]:
        dist.barrier()
        at.clear()
        began = time.perf_counter()
        train_step(model, optimizer, *batch)
        return [each - began for each in (*at, time.perf_counter())]

    step()  # DDP changes its buckets after it
    return step
