"""The fused operation against plain torch, compiled torch and the neurons of SpikingJelly and snnTorch, side by side.

A training step's share: forward and backward of what stands between two binary convolutions (norm, gate, residual add,
neuron), and of the neuron alone. Peers that are installed take part, each with its own neuron in torch's block. All of
them reuse freed memory (`agmm.kernels.memory`), which is worth more to them than to us. See `race` for how; beside them
is a copy, since what is measured is bound by memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agmm.kernels import block_end, check, native, reference, spikes
from agmm.kernels.memory import keep_memory
from agmm.models.blocks import BatchNorm2d
from agmm.modulation import AGMM
from agmm.neuron import LIF
from pipelines.benchmarks import circumstances
from pipelines.benchmarks.peers import LEAK, peers, versions
from pipelines.benchmarks.race import Contender, machine, paired, pinned, race
from pipelines.errors import UserError
from pipelines.progress import Progress

COPY = "a copy"
# T, B, C, H, W: the first stage of a ResNet-18 at 224 pixels, and the third.
SHAPES = ((4, 16, 64, 56, 56), (4, 16, 256, 14, 14))
# Bytes that have to pass for each value: n twice, r, x and spikes; then x, both gradients, n, g; then g, n and dn.
_BLOCK_BYTES, _NEURON_BYTES, _COPY_BYTES = 52, 20, 8

Step = Callable[[], object]


@dataclass(frozen=True)
class Values:
    """What a contender of one shape gets: inputs and gradients of its outputs."""

    n: Tensor
    r: Tensor
    grad_x: Tensor
    grad_spikes: Tensor

    @classmethod
    def random(cls, shape: tuple[int, ...], channels_last: bool) -> Values:
        """Normal values of one seed."""
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(shape, generator=generator) for _ in range(4)]
        return cls(*(_channels_last(each) if channels_last else each for each in drawn))


def bench(
    rounds: int, threads: int, *, shapes: Sequence[tuple[int, ...]] = SHAPES, compiled: bool = True
) -> dict[str, Any]:
    """Rows of every comparison, the hardware and the versions. `ratio`: so many times as fast as the peer.

    Raises UserError where there are no compiled passes, or not so many cores.
    """
    if not check.agrees():
        raise UserError(f"There are no fused kernels to measure: {native.why_not() or check.difference()}.")
    keep_memory()
    races = [(shape, last) for shape in shapes for last in (False, True)]
    rows: list[dict[str, Any]] = []
    with pinned(threads), Progress(2 * rounds * len(races), "measure", "round") as progress:
        for shape, last in races:
            values, layout = Values.random(shape, last), "channels last" if last else "channels first"
            name, amount = f"{'x'.join(map(str, shape))}, {layout}", values.n.numel() / 1e9
            for kind, passed, contenders in (
                ("block", _BLOCK_BYTES, [*_blocks(values, compiled)]),
                ("neuron", _NEURON_BYTES, [*_neurons(values, compiled)]),
            ):
                race(contenders, rounds, progress)
                rows += _rows(f"{kind} {name}", contenders, amount, passed)
    return {"rows": rows, **circumstances(), "threads": threads, "rounds": rounds, **machine(), "peers": versions()}


def _rows(name: str, contenders: Sequence[Contender], values: float, passed: int) -> list[dict[str, Any]]:
    ours, *peers, copy = contenders
    rows = [paired(f"{name}: fused by {peer.name}", ours, peer, "Gvalue/s", values, values) for peer in peers]
    return [*rows, paired(f"{name}: fused by {copy.name}", ours, copy, "GB/s", values * passed, values * _COPY_BYTES)]


def _blocks(values: Values, compiled: bool) -> Iterator[Contender]:
    """The whole operation; the peers' neurons in the block that the reference is."""
    channels, steps = values.n.shape[2], values.n.shape[0]

    def step(function: Callable[..., tuple[Tensor, Tensor]], neuron: nn.Module) -> Step:
        return _block_step(values, function, BatchNorm2d(channels), AGMM(steps), neuron)

    yield Contender("fused", step(block_end, LIF(LEAK)))
    yield Contender("torch", step(reference.block_end, LIF(LEAK)))
    if compiled:
        yield Contender("torch.compile", step(_compiled(reference.block_end), LIF(LEAK)))
    for name, neuron in peers():
        yield Contender(name, step(reference.block_end, neuron))
    yield _copy(values)


def _neurons(values: Values, compiled: bool) -> Iterator[Contender]:
    """The neuron alone."""
    ours = LIF(LEAK)
    yield Contender("fused", _neuron_step(values, lambda x: spikes(x, ours)))
    yield Contender("torch", _neuron_step(values, ours))
    if compiled:
        yield Contender("torch.compile", _neuron_step(values, _compiled(ours)))
    for name, neuron in peers():
        yield Contender(name, _neuron_step(values, neuron))
    yield _copy(values)


def _block_step(
    values: Values,
    function: Callable[..., tuple[Tensor, Tensor]],
    norm: nn.Module,
    gate: nn.Module,
    neuron: nn.Module,
) -> Step:
    n, r = values.n.detach().requires_grad_(), values.r.detach().requires_grad_()

    def step() -> None:
        x, fired = function(n, r, norm, gate, neuron)
        torch.autograd.backward([x, fired], [values.grad_x, values.grad_spikes])
        n.grad = r.grad = None
        norm.zero_grad()
        gate.zero_grad()

    return step


def _neuron_step(values: Values, function: Callable[[Tensor], Tensor]) -> Step:
    x = values.n.detach().requires_grad_()

    def step() -> None:
        function(x).backward(values.grad_spikes)
        x.grad = None

    return step


def _copy(values: Values) -> Contender:
    target = torch.empty_like(values.n)
    return Contender(COPY, lambda: target.copy_(values.n))


def _compiled(function: Any) -> Any:
    """Compiled for every shape anew, without what torch warns of as it traces."""
    torch.compiler.reset()
    whole = torch.compile(function)

    def quiet(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return whole(*arguments)

    return quiet


def _channels_last(x_TBCHW: Tensor) -> Tensor:
    images = x_TBCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return images.unflatten(0, x_TBCHW.shape[:2])
