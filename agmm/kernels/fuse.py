"""How a whole network uses the fused operation: its stages are run along the joints between their blocks.

A block is `neuron -> convolution -> norm -> gate`, added to the stream; the fused operation begins behind a convolution
and ends with the spikes of the next block. Parameters and modules stay where they are, and so does `state_dict`.

Axes: T time steps, B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from agmm.binary import BinaryConv2d
from agmm.kernels import check
from agmm.kernels.block import block_end, spikes
from agmm.kernels.compiled import knows, takes, watched
from agmm.kernels.convolution import count
from agmm.kernels.counted import Counted
from agmm.kernels.replay import ReplayedSequential, ReplayedStem, replayed
from agmm.kernels.trail import Replaying
from agmm.models.blocks import SpikingBlock, over_time
from agmm.models.resnet import SpikingResNet
from agmm.neuron import IF, LIF, PLIF
from agmm.precision import at_least_float32

# Neurons whose output is 0 or 1, which a convolution of bits needs.
_SPIKING = (LIF, IF, PLIF)


class FusedStages(nn.Sequential):
    """The stages of a `SpikingResNet`, joined by `block_end`; one after the other where they or blocks are watched.

    `memory` is one of `agmm.kernels.replay.MODES`, and `stem` the layers before, where these are replayed.
    """

    memory = "fast"
    stem: list[ReplayedStem]

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        blocks = [cast(SpikingBlock, block) for stage in self for block in cast(nn.Sequential, stage)]
        again = self.stem[0].taken() if self.memory != "fast" else None
        if any(map(watched, [*self, *blocks])):
            return super().forward(x_TBCHW)
        links = [*zip(blocks, [*(block.neuron for block in blocks[1:]), None], strict=True)]
        if self.memory == "fast" or not torch.is_grad_enabled():
            return _run(links, x_TBCHW, spikes(x_TBCHW, blocks[0].neuron))[0]
        if takes(x_TBCHW) and all(_leaves_a_trail(*link, len(x_TBCHW)) for link in links):
            base = again and partial(_over_steps, again, x_TBCHW.shape)
            return _run_on_trail(links, x_TBCHW, Replaying(x_TBCHW, base, keeps=self.memory == "balanced"))
        return self._run_in_parts(links, x_TBCHW)

    def _run_in_parts(self, links: list[Link], x_TBCHW: Tensor) -> Tensor:
        """As `_run`, of which between blocks, or stages, only streams and spikes are kept."""
        fired = spikes(x_TBCHW, links[0][0].neuron)
        sizes = [1] * len(links) if self.memory == "balanced" else [len(cast(nn.Sequential, stage)) for stage in self]
        begin = 0
        for size in sizes:
            part = links[begin : begin + size]
            modules = [each for block, _ in part for each in block.modules()]
            x_TBCHW, fired = replayed(_run, part, x_TBCHW, fired, modules=modules)
            begin += size
        return x_TBCHW


# A block, and the neuron of the next; None behind the last.
Link = tuple[SpikingBlock, nn.Module | None]


def _run(links: list[Link], x_TBCHW: Tensor, fired: Tensor) -> tuple[Tensor, Tensor]:
    for block, neuron in links:
        n, r = _convolved(block, fired), over_time(block.shortcut, x_TBCHW)
        x_TBCHW, fired = block_end(n, r, block.norm, block.gate, neuron)
    return x_TBCHW, fired


def _run_on_trail(links: list[Link], x_TBCHW: Tensor, way: Replaying) -> Tensor:
    fired = way.spikes(x_TBCHW, links[0][0].neuron)
    for block, neuron in links:
        n, r = _convolved(block, fired), way.shortcut(block.shortcut, x_TBCHW)
        x_TBCHW, fired = way.block_end(n, r, block.norm, block.gate, neuron)
    return x_TBCHW


def _leaves_a_trail(block: SpikingBlock, neuron: nn.Module | None, steps: int) -> bool:
    """Whether its convolution is one of bits, and its end one of the compiled passes."""
    binary = isinstance(block.conv, BinaryConv2d) and type(block.neuron) in (LIF, IF)
    return binary and knows(block.norm, block.gate, neuron, steps) and check.agrees()


def _over_steps(again: Callable[[], Tensor], shape: torch.Size) -> Tensor:
    """What the stem gave, as the stream before the first block."""
    x = again()
    return x.expand(shape) if len(x) == shape[1] else x.unflatten(0, shape[:2])


def _convolved(block: SpikingBlock, fired_TBCHW: Tensor) -> Counted:
    """The convolution's output, in units of the scale of its weights where that is a constant: one pass less."""
    if type(block.neuron) not in _SPIKING:
        return Counted(at_least_float32(over_time(block.conv, fired_TBCHW)))
    return count(block.conv, fired_TBCHW.flatten(0, 1)).over_time(len(fired_TBCHW))


def fuse(network: nn.Module, memory: str = "fast") -> bool:
    """Have a network use the fused operation from now on, where it is one that can; returns whether it is.

    Args:
        memory: what a training step keeps for its backward pass, one of `agmm.kernels.replay.MODES`; of any network,
            and not a bit of what it computes differs. `fast` keeps all that it needs. `balanced` computes streams
            again, and `least` convolutions too. What the compiled passes do not run is replayed by blocks in
            `balanced`, and by stages in `least`.

    """
    if not isinstance(network, SpikingResNet):
        keep_less(network, memory)
        return False
    network.stages = FusedStages(*network.stages)
    network.stages.memory = memory
    if memory != "fast":
        network.stem = ReplayedStem(*network.stem)
        network.stages.stem = [network.stem]  # in a list: no module of the stages
    return True


def keep_less(network: nn.Module, memory: str) -> None:
    """As `fuse`, of a network that goes on in plain torch."""
    if memory == "fast":
        return
    network.stem = ReplayedStem(*cast(nn.Sequential, network.stem))
    if isinstance(network, SpikingResNet) and memory == "balanced":
        network.stages = nn.Sequential(*(ReplayedSequential(*cast(nn.Sequential, stage)) for stage in network.stages))
        return
    name = "stages" if isinstance(network, SpikingResNet) else "layers"
    parts = ReplayedSequential(*cast(nn.Sequential, getattr(network, name)))
    parts.at_once = 3 if name == "layers" and memory == "least" else 1
    setattr(network, name, parts)


def unfuse(network: nn.Module) -> None:
    """Have a network run its blocks one by one again."""
    if is_fused(network):
        network.stages = nn.Sequential(*cast(FusedStages, network.stages))
        network.stem = nn.Sequential(*cast(nn.Sequential, network.stem))


def is_fused(network: nn.Module) -> bool:
    """Whether `fuse` took effect."""
    return isinstance(getattr(network, "stages", None), FusedStages)
