"""How a whole network uses the fused operation: its stages are run along the joints between their blocks.

A block is `neuron -> convolution -> norm -> gate`, added to the stream; the fused operation begins behind a convolution
and ends with the spikes of the next block. Parameters and modules stay where they are, and so does `state_dict`.

Axes: T time steps, B batch, C channels, H, W.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from agmm.kernels.block import block_end, spikes
from agmm.kernels.compiled import watched
from agmm.kernels.convolution import count
from agmm.kernels.counted import Counted
from agmm.models.blocks import SpikingBlock, over_time
from agmm.models.resnet import SpikingResNet
from agmm.neuron import IF, LIF, PLIF
from agmm.precision import at_least_float32

# Neurons whose output is 0 or 1, which a convolution of bits needs.
_SPIKING = (LIF, IF, PLIF)


class FusedStages(nn.Sequential):
    """The stages of a `SpikingResNet`, joined by `block_end`; one after the other where they or blocks are watched."""

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        blocks = [cast(SpikingBlock, block) for stage in self for block in cast(nn.Sequential, stage)]
        if any(map(watched, [*self, *blocks])):
            return super().forward(x_TBCHW)
        fired = spikes(x_TBCHW, blocks[0].neuron)
        neurons = [*(block.neuron for block in blocks[1:]), None]
        for block, neuron in zip(blocks, neurons, strict=True):
            n, r = _convolved(block, fired), over_time(block.shortcut, x_TBCHW)
            x_TBCHW, fired = block_end(n, r, block.norm, block.gate, neuron)
        return x_TBCHW


def _convolved(block: SpikingBlock, fired_TBCHW: Tensor) -> Counted:
    """The convolution's output, in units of the scale of its weights where that is a constant: one pass less."""
    if type(block.neuron) not in _SPIKING:
        return Counted(at_least_float32(over_time(block.conv, fired_TBCHW)))
    return count(block.conv, fired_TBCHW.flatten(0, 1)).over_time(len(fired_TBCHW))


def fuse(network: nn.Module) -> bool:
    """Have a network use the fused operation from now on, where it is one that can; returns whether it is."""
    if not isinstance(network, SpikingResNet):
        return False
    network.stages = FusedStages(*network.stages)
    return True


def unfuse(network: nn.Module) -> None:
    """Have a network run its blocks one by one again."""
    if is_fused(network):
        network.stages = nn.Sequential(*cast(FusedStages, network.stages))


def is_fused(network: nn.Module) -> bool:
    """Whether `fuse` took effect."""
    return isinstance(getattr(network, "stages", None), FusedStages)
