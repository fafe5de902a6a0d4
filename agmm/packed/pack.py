"""From a trained network to an artifact: signs become bits, batch normalisation folds into one affine a channel.

The fold is done and kept in float64, exact but for rounding; runtimes round it once to what they compute in.
A gate depends on its input and stays a gate; only a constant one folds.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from agmm.models import VGGSNN, SpikingNetwork, SpikingResNet
from agmm.models.blocks import FeedForwardBlock, TemporalBatchNorm2d
from agmm.modulation import AGMM, Halve
from agmm.neuron import LIF, RateIF
from agmm.packed.artifact import Artifact
from agmm.packed.description import Block, Description, Input, Neuron, Source, Stem, Tail
from agmm.packed.frozen import SignConv2d, frozen
from agmm.packed.reference import pack_signs

Tensors = dict[str, NDArray[Any]]


class NotPackable(ValueError):
    """The network has no packed form; the text says which part of it has none."""


@dataclass(frozen=True)
class About:
    """What an artifact says of its network beside the network itself; see `Description`."""

    name: str
    arch: str
    input: Input
    classes: tuple[str, ...] = ()
    source: Source = field(default_factory=Source)


def pack(network: SpikingNetwork, about: About) -> Artifact:
    """The artifact of a trained network, not yet written.

    Raises NotPackable.
    """
    try:
        return _pack(network, about)
    except ValidationError as error:
        raise NotPackable(f"The network has no packed form: {error.errors()[0]['msg']}.") from error


def _pack(network: SpikingNetwork, about: About) -> Artifact:
    fixed = frozen(network)
    packer = _Packer()
    if isinstance(fixed, SpikingResNet):
        stem, tail = packer.stem(fixed.stem), Tail(kind="mean")
        blocks = [packer.skip_block(block) for stage in fixed.stages for block in cast(nn.Sequential, stage)]
    elif isinstance(fixed, VGGSNN):
        stem = packer.stem(fixed.stem)
        blocks, tail = packer.feed_forward(fixed)
    else:
        raise NotPackable(f"{type(network).__name__} has no packed form. Known: SpikingResNet, VGGSNN.")
    packer.head(fixed.head)
    description = Description(
        name=about.name,
        arch=about.arch,
        time_steps=fixed.num_steps,
        num_classes=fixed.num_classes,
        classes=about.classes,
        input=about.input,
        stem=stem,
        blocks=tuple(blocks),
        tail=tail,
        norm_per_step=any(isinstance(module, TemporalBatchNorm2d) for module in fixed.modules()),
        source=about.source,
    )
    return Artifact(description, packer.tensors)


class _Packer:
    """Collects the tensors of a frozen network, block by block."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self._blocks = 0

    def stem(self, stem: nn.Sequential) -> Stem:
        conv: Any = stem[0]
        self.tensors["stem.weight"] = _float32(conv.weight)
        self.tensors["stem.affine"] = _affine(stem[1])
        channels, _, kernel, _ = conv.weight.shape
        return Stem(channels=channels, kernel=kernel, stride=conv.stride[0], max_pool=len(stem) > 2)

    def skip_block(self, block: Any) -> Block:
        name, shortcut = f"blocks.{self._blocks}", "identity"
        if not isinstance(block.shortcut, nn.Identity):
            _, conv, norm = block.shortcut
            self.tensors[f"{name}.shortcut.weight"] = _float32(conv.weight)[:, :, 0, 0]
            self.tensors[f"{name}.shortcut.affine"] = _affine(norm)
            shortcut = "projection"
        return self._block(block, _neuron(block.neuron), False, shortcut)

    def feed_forward(self, network: VGGSNN) -> tuple[list[Block], Tail]:
        """A neuron behind each convolution is the one before the next: the last one's is the tail's."""
        blocks, neuron, pool = [], _neuron(network.neuron), False
        for layer in network.layers:
            if not isinstance(layer, FeedForwardBlock):
                pool = True
                continue
            blocks.append(self._block(layer, neuron, pool, "none"))
            neuron, pool = _neuron(layer.neuron), False
        return blocks, Tail(kind="spikes", neuron=neuron, pool=pool, grid=3)

    def head(self, head: nn.Module) -> None:
        if not isinstance(head, nn.Linear):
            raise NotPackable("The network has no head: it gives features, and there are no classes to predict.")
        self.tensors["head.weight"], self.tensors["head.bias"] = _float32(head.weight), _float32(head.bias)

    def _block(self, block: Any, neuron: Neuron, pool: bool, shortcut: Any) -> Block:
        name, conv = f"blocks.{self._blocks}", block.conv
        if not isinstance(conv, SignConv2d):
            raise NotPackable(
                f"Block {self._blocks} has a {type(conv).__name__}, whose weights are not 1 bit: nothing to pack. "
                "Train with model.method=agmm, or another but full_precision."
            )
        gate, factor = _gate(block.gate)
        self.tensors[f"{name}.signs"] = pack_signs(conv.signs.weight.permute(0, 2, 3, 1).numpy())
        self.tensors[f"{name}.affine"] = _affine(block.norm, conv.scale.flatten()) * factor
        if gate != "none":
            self.tensors[f"{name}.alpha"] = block.gate.alpha.numpy().astype(np.float64)
        self._blocks += 1
        outs, ins = conv.signs.weight.shape[:2]
        return Block(
            in_channels=ins,
            out_channels=outs,
            stride=cast(Any, conv.signs.stride[0]),
            neuron=neuron,
            pool=pool,
            gate=gate,
            shortcut=shortcut,
        )


def _float32(parameter: Any) -> NDArray[np.float32]:
    return parameter.numpy().astype(np.float32)


def _affine(norm: Any, scale: Tensor | float = 1.0) -> NDArray[np.float64]:
    """`[2, S, O]`: what a norm in evaluation makes of `scale * x`, as factor and constant; S = T where it has steps."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    slope = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    rows = torch.stack([slope * scale, norm.bias - norm.running_mean * slope])[:, None]
    if isinstance(norm, TemporalBatchNorm2d):
        rows = rows * norm.factor[None, :, None]
    return rows.numpy()


def _gate(gate: nn.Module) -> tuple[Any, float]:
    """The gate's scope, or none with the factor that a constant one folds into."""
    if isinstance(gate, AGMM):
        return ("none", 1.0) if gate.kind == "backward_only" else (gate.scope, 1.0)
    return "none", 0.5 if isinstance(gate, Halve) else 1.0


def _neuron(neuron: nn.Module) -> Neuron:
    if isinstance(neuron, RateIF):
        level = float(neuron.level)
        return Neuron(leak=1.0, threshold=level, reset="soft", start=0.5 * level, amplitude=level)
    if not isinstance(neuron, LIF):
        raise NotPackable(
            f"{type(neuron).__name__} does not spike: there are no bits to compute with. Convert the model "
            "(`agmm convert`), or train it with another model.neuron.kind."
        )
    reset: Any = neuron.reset
    return Neuron(leak=float(neuron.leak), threshold=float(neuron.threshold), reset=reset)
