"""The methods that can be compared: what a block's convolution is, and whether a gate follows it. One switch."""

from dataclasses import dataclass

from torch import nn

from agmm.binary import BinaryConv2d, RealConv2d
from agmm.related import LearnedScaleConv2d, QSNNConv2d, ReCUConv2d, XnorConv2d


@dataclass(frozen=True)
class Method:
    """What distinguishes a method.

    conv: the convolution within a block. gated: whether AGMM's gate follows it. firing_penalty: weight of
    `agmm.losses.FiringPenalty` in the loss.
    """

    conv: type[nn.Conv2d]
    gated: bool = False
    firing_penalty: float = 0.0


METHODS = {
    "agmm": Method(BinaryConv2d, gated=True),
    "vanilla": Method(BinaryConv2d),
    "full_precision": Method(RealConv2d),
    "q_snn": Method(QSNNConv2d, firing_penalty=5e-3),
    "recu": Method(ReCUConv2d),
    "xnor": Method(XnorConv2d),
    "xnor_learned": Method(LearnedScaleConv2d),
}


def get_method(name: str) -> Method:
    """The method of that name. Raises ValueError naming the known ones."""
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Known: {', '.join(METHODS)}. Set model.method.")
    return METHODS[name]
