"""Whether an artifact answers as the network does that it was made from: every integer, and the logits.

Both run in float64 (see `frozen`). A fault is told with the layer at which it begins.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agmm.metrics.hooks import hooked
from agmm.models import SpikingNetwork
from agmm.packed import reference
from agmm.packed.artifact import Artifact
from agmm.packed.frozen import SignConv2d, Signs, frozen

TOLERANCE = 1e-4  # of logits
_ROUNDING = 1e-6  # of an integer that is counted in units that are no power of two


class Differs(ValueError):
    """The artifact does not answer as the network; the text says where."""


@dataclass(frozen=True)
class Agreement:
    """What was compared and found equal.

    Attributes:
        inputs: how many images, or recordings.
        integers: results of binary convolutions that were compared, all equal.
        largest: greatest difference of a logit.
        logits: of the network, float64 `[B, K]`.

    """

    inputs: int
    integers: int
    largest: float
    logits: NDArray[np.float64]


@torch.inference_mode()
def verify(network: SpikingNetwork, artifact: Artifact, batches: Iterable[NDArray[Any]]) -> Agreement:
    """Run both on all `batches` of normalised images `[B, H, W, C]`, or frames `[B, T, H, W, C]`.

    Raises Differs where an integer differs, a logit by more than `TOLERANCE`, or a predicted class; ValueError for no
    images.
    """
    fixed = frozen(network)
    layers = {name: module.signs for name, module in fixed.named_modules() if isinstance(module, SignConv2d)}
    inputs, integers, largest, logits = 0, 0, 0.0, []
    for batch in batches:
        theirs, counts = _network(fixed, layers, batch)
        watch = _Comparison(list(layers), counts, [block.unit for block in artifact.description.blocks], inputs)
        ours, _ = reference.run(artifact.description, artifact.tensors, batch, watch)
        largest = max(largest, _compare_logits(ours, theirs, inputs))
        inputs, integers = inputs + len(batch), integers + watch.compared
        logits.append(theirs)
    if not inputs:
        raise ValueError("There are no images to compare with.")
    return Agreement(inputs, integers, largest, np.concatenate(logits))


def _network(
    fixed: SpikingNetwork, layers: dict[str, Signs], batch: NDArray[Any]
) -> tuple[NDArray[np.float64], list[Tensor]]:
    """Mean logits of the network, and of each binary convolution what arrives at its outputs, `[T * B, O, H, W]`."""
    counts: list[Tensor] = []

    def keep(_number: int, _layer: Any, _inputs: tuple[Any, ...], output: Tensor) -> None:
        counts.append(output)

    axes = (1, 0, 4, 2, 3) if batch.ndim == 5 else (0, 3, 1, 2)
    with hooked(layers, keep):
        logits_TBK = fixed(torch.from_numpy(batch).double().permute(axes))
    return logits_TBK.mean(0).numpy(), counts


class _Comparison:
    """Holds each convolution's integers against the network's."""

    def __init__(self, names: list[str], counts: list[Tensor], units: list[float], first: int) -> None:
        self._names, self._counts, self._units, self._first = names, counts, units, first
        self.compared = 0

    def __call__(self, number: int, _seen: NDArray[Any], results_TBHWO: NDArray[Any]) -> None:
        theirs = self._counts[number].permute(0, 2, 3, 1).reshape(results_TBHWO.shape).numpy() / self._units[number]
        wrong = np.argwhere(np.abs(theirs - results_TBHWO) > _ROUNDING)
        if len(wrong):
            t, image, row, column, channel = map(int, wrong[0])
            raise Differs(
                f"The artifact differs from the network at {self._names[number]}: input {self._first + image}, step "
                f"{t}, channel {channel}, row {row}, column {column}: {results_TBHWO[tuple(wrong[0])]} instead of "
                f"{theirs[tuple(wrong[0])]:g}; {len(wrong)} of {results_TBHWO.size} results differ."
            )
        self.compared += results_TBHWO.size


def _compare_logits(ours_BK: NDArray[np.float64], theirs_BK: NDArray[np.float64], first: int) -> float:
    largest = float(np.abs(ours_BK - theirs_BK).max())
    if not largest <= TOLERANCE:
        raise Differs(
            f"The artifact's logits differ from the network's by {largest:.3g}, behind equal convolutions; at most "
            f"{TOLERANCE:g} is allowed."
        )
    others = np.flatnonzero(ours_BK.argmax(1) != theirs_BK.argmax(1))
    if len(others):
        raise Differs(f"The artifact gives input {first + others[0]} another class than the network.")
    return largest
