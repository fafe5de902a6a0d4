"""A training step, forward, backward and update, of an AGMM ResNet-18, against the same network with other neurons.

The peers' network is ours with SpikingJelly's neurons in place of its own, plain torch between them, eager and
compiled, in float32 and in bfloat16; and plain torch with our own neurons. All are channels last. See `race` for how.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from agmm import models
from agmm.kernels import check, fuse, native
from agmm.kernels.memory import keep_memory
from agmm.loop import train_step
from agmm.models.blocks import SpikingBlock
from pipelines.benchmarks import circumstances
from pipelines.benchmarks.peers import SpikingJelly, has_spikingjelly, versions
from pipelines.benchmarks.race import PEAK, Contender, machine, paired, peak, pinned, race
from pipelines.errors import UserError
from pipelines.progress import Progress

ARCH, STEPS, SIDE, BATCH, CLASSES = "agmm_resnet18", 4, 64, 16, 1000
KINDS = (("float32", "fp32"), ("bfloat16", "bf16"))


def bench(
    rounds: int, threads: int, *, side: int = SIDE, batch: int = BATCH, width: int = 64, compiled: bool = True
) -> dict[str, Any]:
    """Rows of every comparison, the hardware and the versions. `ratio`: so many times as fast as the peer.

    Raises UserError where there are no compiled passes, or not so many cores.
    """
    if not check.agrees():
        raise UserError(f"There are no fused kernels to measure: {native.why_not() or check.difference()}.")
    keep_memory()
    with pinned(threads), Progress(rounds, "measure", "round") as progress:
        contenders = [*_contenders(side, batch, width, compiled), peak()]
        race(contenders, rounds, progress)
    name = f"{ARCH}, width {width}, {side} px, T = {STEPS}, batch {batch}"
    rows = _rows(name, contenders, batch)
    return {"rows": rows, **circumstances(), "threads": threads, "rounds": rounds, **machine(), "peers": versions()}


def _rows(name: str, contenders: Sequence[Contender], batch: int) -> list[dict[str, Any]]:
    ours = [each for each in contenders if each.name.startswith("fused")]
    peers = [each for each in contenders if each not in ours and each.name != PEAK]
    return [
        paired(f"{name}: {mine.name} by {peer.name}", mine, peer, "images/s", batch, batch)
        for mine in ours
        for peer in [*peers, *(other for other in ours if other is not mine)]
    ]


def _contenders(side: int, batch: int, width: int, compiled: bool) -> Iterator[Contender]:
    def step(precision: str, change: Callable[[nn.Module], Any], whole: bool = False) -> Callable[[], object]:
        return make_step(make_network(width), side, batch, precision, change, whole)

    for name, precision in KINDS:
        yield Contender(f"fused, {name}", step(precision, fuse))
    for name, precision in KINDS:
        yield Contender(f"torch, {name}", step(precision, lambda _: None))
    for name, precision in KINDS if has_spikingjelly() else ():
        yield Contender(f"SpikingJelly, {name}", step(precision, with_spikingjelly))
        if compiled:
            yield Contender(f"SpikingJelly compiled, {name}", step(precision, with_spikingjelly, True))


def make_network(width: int) -> nn.Module:
    """The network that all train, with weights of one seed, channels last."""
    torch.manual_seed(0)
    network = models.create_model(ARCH, num_classes=CLASSES, num_steps=STEPS, width=width)
    return network.to(memory_format=torch.channels_last)


def with_spikingjelly(network: nn.Module) -> None:
    """Put SpikingJelly's neurons in the place of a network's own."""
    for block in network.modules():
        if isinstance(block, SpikingBlock):
            block.neuron = SpikingJelly()


def make_step(
    network: nn.Module, side: int, batch: int, precision: str, change: Callable[[nn.Module], Any], whole: bool = False
) -> Callable[[], object]:
    """A training step on random images, of a network that is changed first, and compiled where `whole`."""
    change(network)
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, CLASSES, (batch,))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    if whole:
        torch.compiler.reset()
        network.compile()

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch remarks as it traces
            train_step(network, optimizer, images, target, precision=precision)

    return step
