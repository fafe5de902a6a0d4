"""How far an exported network's answers are from the network's, against how far float32 alone is.

The truth is the network in float64. In float32 a membrane within rounding of its threshold may fire or not, by the
order in which a program adds up; a spike more or less then moves the logits by far more than rounding, and a network
of millions of neurons has such membranes in many images. No fixed tolerance of logits fits both. So the network's own
float32 graph is run too, and an export may be as far from the truth as that one is.

Axes: B inputs, H, W, C, T time steps, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agmm.models import SpikingNetwork
from agmm.modulation import AGMM
from agmm.packed.description import Input
from agmm.packed.frozen import frozen
from agmm.packed.verify import Differs

ROUNDING = 1e-4  # of logits, where no spike differs
_FURTHER = 4  # times float32's largest distance: of few inputs it is a guess
_OTHER_CLASSES = 0.02  # of the inputs: those that lie between two classes
_BATCH = 16
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """From the truth: by input, the largest difference of a logit; of those the largest and the median.

    Attributes:
        inputs: how many.
        largest: over the inputs.
        median: over the inputs.
        other_class: inputs whose class is not the truth's.

    """

    inputs: int
    largest: float
    median: float
    other_class: int

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.largest:.2g}, median {self.median:.2g}, and the class on "
            f"{self.other_class} of {self.inputs} inputs"
        )


@dataclass(frozen=True)
class Agreement:
    """What an exported network was held against, and what came out.

    Attributes:
        exported: the exported network's distance from the network in float64.
        float32: the same of the network itself in float32.

    """

    exported: Distance
    float32: Distance

    def __str__(self) -> str:
        return f"from the network in float64 {self.exported}; from there to the network in float32, {self.float32}"


class Frozen(nn.Module):
    """A network as it acts, with the mean over T at its end: what is exported.

    Args:
        network: trained; it is copied.
        dtype: of weights and sums.

    Input `[B, C, H, W]`, or frames `[B, T, C, H, W]`; output `[B, K]`.

    """

    def __init__(self, network: SpikingNetwork, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = frozen(network).to(dtype)
        for parent in list(self.network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, AGMM) and child.kind == "backward_only":
                    setattr(parent, name, nn.Identity())  # it passes values; only gradients know it

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.transpose(0, 1) if images.ndim == 5 else images).mean(0)


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """`[B, (T,) H, W, C]` to `[B, (T,) C, H, W]`, contiguous."""
    return np.ascontiguousarray(np.moveaxis(images, -1, -3))


def in_batches(function: Callable[[NDArray[Any]], NDArray[Any]], inputs: NDArray[Any]) -> Array:
    """`function`'s logits of all inputs, in float64, so many at a time that memory is bounded."""
    parts = [function(inputs[start : start + _BATCH]) for start in range(0, len(inputs), _BATCH)]
    return np.concatenate(parts).astype(np.float64)


@torch.inference_mode()
def logits(network: SpikingNetwork, images: NDArray[Any], dtype: torch.dtype) -> Array:
    """Mean logits `[B, K]` of the network as it acts, computed in `dtype`, of `[B, (T,) H, W, C]`."""
    fixed = Frozen(network, dtype)
    return in_batches(lambda part: fixed(torch.from_numpy(channels_first(part)).to(dtype)).numpy(), images)


def checked_inputs(images: NDArray[Any], taken: Input) -> NDArray[np.float32]:
    """The inputs as float32. Raises ValueError for none, or of a shape that the network does not take."""
    wanted = (taken.height, taken.width, taken.channels)
    if images.ndim != 4 + taken.frames or not len(images) or images.shape[-3:] != wanted:
        axes = "frames [B, T, H, W, C]" if taken.frames else "normalised images [B, H, W, C]"
        raise ValueError(
            f"An export is checked on {axes}, at least one, with H, W, C = {list(wanted)}; got {list(images.shape)}."
        )
    return images.astype(np.float32)


def distance(truth_BK: Array, logits_BK: Array) -> Distance:
    """How far `logits_BK` are from the truth."""
    differences_B = np.abs(logits_BK - truth_BK).max(axis=1)
    others = int((logits_BK.argmax(1) != truth_BK.argmax(1)).sum())
    return Distance(len(truth_BK), float(differences_B.max()), float(np.median(differences_B)), others)


def agree(what: str, exported_BK: Array, truth_BK: Array, float32_BK: Array) -> Agreement:
    """Hold an export's logits against the network's; `what` is the export's name.

    Raises Differs where half of the inputs are much further off than the float32 network is on any, and than rounding;
    or where more than 2 in 100 have another class, unless float32 itself changes half as many.
    """
    found = Agreement(distance(truth_BK, exported_BK), distance(truth_BK, float32_BK))
    ours, theirs = found.exported, found.float32
    if not ours.median <= max(ROUNDING, _FURTHER * theirs.largest):
        raise Differs(f"{what} does not answer as the network does: {found}.")
    if ours.other_class > max(_OTHER_CLASSES * ours.inputs, 2 * theirs.other_class):
        raise Differs(f"{what} gives too many inputs another class: {found}.")
    return found
