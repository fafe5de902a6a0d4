"""How a whole network uses the fused operation, which begins behind a convolution and ends with spikes.

A block of a `SpikingResNet` is `neuron -> convolution -> norm -> gate`, added to the stream, so its stages are run
along the joints between their blocks; one of a `VGGSNN` ends with its neuron. Parameters and modules stay where they
are, and so does `state_dict`.

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
from agmm.models.blocks import FeedForwardBlock, SpikingBlock, over_time
from agmm.models.resnet import SpikingResNet
from agmm.models.vggsnn import VGGSNN
from agmm.neuron import IF, LIF, PLIF
from agmm.precision import at_least_float32

# Neurons whose output is 0 or 1, which a convolution of bits needs.
_SPIKING = (LIF, IF, PLIF)
_LAYERS_AT_ONCE = 3  # of a VGGSNN, replayed in `least`


class FusedStages(nn.Sequential):
    """The stages of a `SpikingResNet`, joined by `block_end`; one after the other where they or blocks are watched.

    `memory` is one of `agmm.kernels.replay.MODES`, and `stem` the layers before, where these are replayed; in a list,
    for it is no module of the stages.
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


class FusedLayers(nn.Sequential):
    """The layers of a `VGGSNN`, its blocks by `block_end`; `memory` as of `FusedStages`."""

    memory = "fast"

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        layers = list(self)
        if any(map(watched, layers)):
            return super().forward(x_TBCHW)
        # before the first comes a neuron too
        behind = [True, *(isinstance(layer, FeedForwardBlock) for layer in layers)]
        links = [*zip(layers, behind, strict=False)]
        if self.memory == "fast":
            return _run_layers(links, x_TBCHW)
        size = 1 if self.memory == "balanced" else _LAYERS_AT_ONCE
        for begin in range(0, len(links), size):
            part = links[begin : begin + size]
            modules = [each for layer, _ in part for each in layer.modules()]
            x_TBCHW = replayed(_run_layers, part, x_TBCHW, modules=modules)
        return x_TBCHW


def _run_layers(links: list[tuple[nn.Module, bool]], x_TBCHW: Tensor) -> Tensor:
    """Layers, each with whether it stands behind a neuron."""
    for layer, behind_neuron in links:
        if isinstance(layer, FeedForwardBlock):
            n = _convolved(layer, x_TBCHW) if behind_neuron else _of_floats(layer, x_TBCHW)
            _, x_TBCHW = block_end(n, None, layer.norm, layer.gate, layer.neuron)
        else:
            x_TBCHW = layer(x_TBCHW)
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


def _convolved(block: SpikingBlock | FeedForwardBlock, fired_TBCHW: Tensor) -> Counted:
    """The convolution's output, in units of the scale of its weights where that is a constant: one pass less.

    All neurons of a network are of one kind, so the block's own tells what `fired_TBCHW` is.
    """
    if type(block.neuron) not in _SPIKING:
        return _of_floats(block, fired_TBCHW)
    return count(block.conv, fired_TBCHW.flatten(0, 1)).over_time(len(fired_TBCHW))


def _of_floats(block: SpikingBlock | FeedForwardBlock, x_TBCHW: Tensor) -> Counted:
    return Counted(at_least_float32(over_time(block.conv, x_TBCHW)))


def _behind_stem(network: nn.Module) -> tuple[str, type[FusedStages] | type[FusedLayers]] | None:
    """The name of what a network runs behind its stem, and what runs it fused."""
    if isinstance(network, SpikingResNet):
        return "stages", FusedStages
    return ("layers", FusedLayers) if isinstance(network, VGGSNN) else None


def fuse(network: nn.Module, memory: str = "fast") -> bool:
    """Have a network use the fused operation from now on, where it is one that can; returns whether it is.

    Args:
        memory: what a training step keeps for its backward pass, one of `agmm.kernels.replay.MODES`; of any network,
            and not a bit of what it computes differs. `fast` keeps all that it needs. `balanced` computes streams
            again, and `least` convolutions too. What the compiled passes do not run, and a `VGGSNN`, is replayed by
            blocks in `balanced`, and by stages in `least`.

    """
    if (found := _behind_stem(network)) is None:
        return False
    name, kind = found
    parts = kind(*getattr(network, name))
    parts.memory = memory
    if memory != "fast":
        network.stem = ReplayedStem(*cast(nn.Sequential, network.stem))
        if isinstance(parts, FusedStages):
            parts.stem = [network.stem]
    setattr(network, name, parts)
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
    parts.at_once = _LAYERS_AT_ONCE if name == "layers" and memory == "least" else 1
    setattr(network, name, parts)


def unfuse(network: nn.Module) -> None:
    """Have a network run its blocks one by one again."""
    if (found := _behind_stem(network)) is not None and is_fused(network):
        for name in ("stem", found[0]):
            setattr(network, name, nn.Sequential(*getattr(network, name)))


def is_fused(network: nn.Module) -> bool:
    """Whether `fuse` took effect."""
    return (found := _behind_stem(network)) is not None and isinstance(getattr(network, found[0]), found[1])
