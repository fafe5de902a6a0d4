"""The methods that can be compared: what a block's convolution is, and whether a gate follows it. One switch."""

from dataclasses import dataclass

from torch import nn

from agmm.binary import BinaryConv2d, RealConv2d


@dataclass(frozen=True)
class Method:
    """What distinguishes a method within a block."""

    conv: type[nn.Conv2d]
    gated: bool


METHODS = {
    "agmm": Method(BinaryConv2d, gated=True),
    "vanilla": Method(BinaryConv2d, gated=False),
    "full_precision": Method(RealConv2d, gated=False),
}


def get_method(name: str) -> Method:
    """The method of that name. Raises ValueError naming the known ones."""
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Known: {', '.join(METHODS)}. Set model.method.")
    return METHODS[name]
