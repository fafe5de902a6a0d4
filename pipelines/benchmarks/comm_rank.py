"""One rank of `agmm bench comm`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from agmm.exchange.exchange import Averaged, Bucket, Exchange
from agmm.loop import train_step
from pipelines.benchmarks import DATASET
from pipelines.benchmarks.wire import bytes_sent_by
from pipelines.config import RunConfig, parse_config
from pipelines.loop.gradients import distribute, make_exchange
from pipelines.loop.world import World
from pipelines.network import build_network, build_optimizer

Hook = Callable[[Bucket], Averaged]
Batch = tuple[Tensor, Tensor]


@dataclass
class Copied:
    """A bucket as DDP had it, with memory of its own: what is exchanged without a backward pass."""

    number: int
    weights: list[Tensor]
    memory: Tensor
    gradient: Tensor  # what DDP had in it
    last: bool

    def refill(self) -> None:
        """Undo an exchange: averages of averages would become small numbers, which are slow."""
        self.memory.copy_(self.gradient)

    def index(self) -> int:
        """As DDP's."""
        return self.number

    def buffer(self) -> Tensor:
        """As DDP's."""
        return self.memory

    def parameters(self) -> list[Tensor]:
        """As DDP's."""
        return self.weights

    def is_last(self) -> bool:
        """As DDP's."""
        return self.last

    def gradients(self) -> list[Tensor]:
        """As DDP's."""
        parts = self.memory.split([weight.numel() for weight in self.weights])
        return [part.as_strided(w.shape, w.stride()) for part, w in zip(parts, self.weights, strict=True)]


@dataclass
class Kind:
    """One way to exchange. Bytes of one exchange, and of a whole one where there are such; seconds of each round.

    These are of an exchange alone, of all threads' processor time within it, and of a training step.
    """

    hook: Hook
    exchange: Exchange | None
    step: Callable[[], object]
    bytes: int = 0
    whole: int | None = None
    seconds: list[tuple[float, float, float]] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """What the benchmark is told."""
        alone, processor, step = map(list, zip(*self.seconds, strict=True))
        return {"bytes": self.bytes, "whole": self.whole, "exchange": alone, "processor": processor, "step": step}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Count the bytes of each kind, then time all of them in rounds; every rank calls it."""
    size = job["size"]
    batch = batch_of(size)
    network, buckets = recorded(config_of(size, "fp32"), batch)
    kinds = {name: kind_of(config_of(size, name), network, batch) for name in job["kinds"]}
    for kind in kinds.values():
        count_bytes(kind, buckets)
    for turn in range(job["rounds"] + 1):
        for kind in kinds.values():
            seconds = once(kind, buckets)
            if turn:  # the first warms up
                kind.seconds.append(seconds)
    return {"parameters": sum(len(b.memory) for b in buckets)} | {name: kind.answer() for name, kind in kinds.items()}


def once(kind: Kind, buckets: list[Copied]) -> tuple[float, float, float]:
    """Exchange alone, and take a step: seconds of both, and in the middle the processor's of the first."""
    alone, processor = exchanged(kind, buckets)
    step, _ = timed(kind.step)
    return alone, processor, step


def exchanged(kind: Kind, buckets: list[Copied]) -> tuple[float, float]:
    """Seconds of an exchange alone, and the processor's."""
    for bucket in buckets:
        bucket.refill()
    return timed(partial(exchange, kind, buckets))


def batch_of(size: dict[str, Any]) -> Batch:
    """Random images and labels, another batch on each rank."""
    torch.manual_seed(dist.get_rank())
    images = torch.randn(size["batch_size"], 3, size["resolution"], size["resolution"])
    return images.contiguous(memory_format=torch.channels_last), torch.randint(size["classes"], (len(images),))


def config_of(size: dict[str, Any], kind: str) -> RunConfig:
    """A recipe of a `comm.Size` with one kind of gradients."""
    model = {name: size[name] for name in ("arch", "width", "stem", "time_steps")} | {"num_classes": size["classes"]}
    data = {"dataset": DATASET, "resolution": size["resolution"], "batch_size": size["batch_size"] * 64}
    tree = {"name": "bench", "data": data, "model": model, "optim": {"lr": 1e-3}, "run": {"gradients": {"kind": kind}}}
    return parse_config(tree, origin="bench")


def network_of(config: RunConfig) -> nn.Module:
    """The network, alike on all ranks."""
    torch.manual_seed(0)
    return build_network(config.model)


def recorded(config: RunConfig, batch: Batch) -> tuple[nn.Module, list[Copied]]:
    """A network, and the buckets of DDP's second step with it, from which on their layout stays."""
    network, found = network_of(config), list[Copied]()
    model, optimizer = DistributedDataParallel(network), build_optimizer(network, config.optim)

    def copy(bucket: Any) -> Averaged:
        memory = bucket.buffer().clone()
        found.append(Copied(bucket.index(), list(bucket.parameters()), memory, memory.clone(), bucket.is_last()))
        return allreduce_hook(_group(), bucket)

    model.register_comm_hook(None, lambda _, bucket: copy(bucket))
    for _ in range(2):
        found.clear()
        train_step(model, optimizer, *batch)
    return network, found


def kind_of(config: RunConfig, network: nn.Module, batch: Batch) -> Kind:
    """A kind under DDP for steps of a network of its own, and again for exchanges alone, of gradients of `network`."""
    trained = network_of(config)
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    model, inside = distribute(trained, world, config)
    optimizer = build_optimizer(trained, config.optim)

    def step() -> None:
        if inside is not None:
            inside.begin(1, whole=False)
        train_step(model, optimizer, *batch)

    step()  # DDP changes its buckets after it
    if alone := make_exchange(config.run.gradients, network, rebuilds=False):
        return Kind(alone.average, alone, step)
    hook = bf16_compress_hook if config.run.gradients.kind == "bf16" else allreduce_hook
    return Kind(partial(hook, _group()), None, step)


def count_bytes(kind: Kind, buckets: list[Copied]) -> None:
    """Bytes of a whole exchange, where there are such, then of one that is not: what follows goes on like it."""
    for whole in (True, False) if kind.exchange is not None else (False,):
        if kind.exchange is not None:
            kind.exchange.begin(1, whole=whole)
        dist.barrier()  # so that nobody is still sending
        kind.bytes = bytes_sent_by(lambda: exchange(kind, buckets))
        if whole:
            kind.whole = kind.bytes


def exchange(kind: Kind, buckets: list[Copied]) -> None:
    """All buckets, to the end."""
    for future in [kind.hook(bucket) for bucket in buckets]:
        future.wait()


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds from when all ranks are there, and the processor's in this process."""
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - used


def _group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group
