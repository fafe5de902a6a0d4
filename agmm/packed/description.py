"""What a packed network is, beside its numbers: the part of an artifact that is text.

Axes: T time steps, O output and I input channels, H, W, K classes. `method.md`'s symbols: a neuron's `leak` is tau,
its `threshold` V_th.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT, VERSION = "agmm-packed", 1

# Limits that no network of this family comes near; they bound what a hostile file can ask for.
_MOST_CHANNELS, _MOST_BLOCKS, _MOST_SIDE, _MOST_STEPS = 1 << 14, 1 << 10, 1 << 14, 1 << 10
_MOST_VALUES = 1 << 26  # of the input, or of one layer's output, over all steps: 256 MB in float32
_PADDED = 16  # channels, to a multiple of which the kernels keep them
_Count = Annotated[int, Field(ge=1, le=_MOST_CHANNELS)]
# What float32 has, with room for products.
_LARGEST_AMOUNT = 1e30
_Amount = Annotated[float, Field(ge=1 / _LARGEST_AMOUNT, le=_LARGEST_AMOUNT)]
_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
_Text = Annotated[str, Field(max_length=1 << 12)]
# Results of a binary convolution are kept in 16 bits.
_MOST_SUM, _TAPS = (1 << 15) - 1, 9
# An average of 2x2 spikes is handled as so many times itself: an integer, also over the 1 or 2 that a border leaves.
POOLED = 4


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Neuron(_Part):
    """Integrate-and-fire: u = leak * v + x; s = u >= threshold; v = 0 after a spike, or u - threshold (Eq. 1-4)."""

    leak: float = Field(ge=0, le=1)
    threshold: _Amount
    reset: Literal["hard", "soft"] = "hard"
    start: float = Field(0.0, ge=-_LARGEST_AMOUNT, le=_LARGEST_AMOUNT)  # the membrane before the first step
    amplitude: _Amount = 1.0  # what a spike of it counts for in the layer behind

    @model_validator(mode="after")
    def _silent_at_rest(self) -> Neuron:
        if np.float32(self.start) >= np.float32(self.threshold):  # the kernels' type
            raise ValueError(f"a membrane must start below its threshold, got {self.start} and {self.threshold}")
        return self


class Stem(_Part):
    """The first, real-valued convolution; zero padding of half the kernel, then perhaps a 3x3 max-pool of stride 2."""

    channels: _Count
    kernel: Literal[1, 3, 5, 7]
    stride: Literal[1, 2]
    max_pool: bool


class Block(_Part):
    """`neuron -> [2x2 average pool] -> binary 3x3 convolution -> affine -> gate`, added to the shortcut.

    `steps` of the affines is T where the norm has a factor per time step, else 1. A shortcut that is a projection is an
    average pool of the stride, a real 1x1 convolution and an affine.
    """

    in_channels: _Count
    out_channels: _Count
    stride: Literal[1, 2]
    neuron: Neuron
    pool: bool = False
    gate: Literal["none", "sample", "channel"]
    shortcut: Literal["none", "identity", "projection"]

    @property
    def unit(self) -> float:
        """What 1 of the convolution's integer results is worth to the affine."""
        return self.neuron.amplitude / (POOLED if self.pool else 1)

    @model_validator(mode="after")
    def _is_possible(self) -> Block:
        most = _TAPS * self.in_channels * (POOLED if self.pool else 1)
        if most > _MOST_SUM:
            raise ValueError(
                f"a binary convolution of {self.in_channels} channels{' of pooled spikes' if self.pool else ''} sums "
                f"up to {most}; {_MOST_SUM} is the most"
            )
        if self.shortcut == "identity" and (self.stride != 1 or self.in_channels != self.out_channels):
            raise ValueError("an identity shortcut needs equal channels and stride 1")
        if self.pool and self.shortcut != "none":
            raise ValueError("a shortcut would not fit a convolution behind a pool")
        return self


class Tail(_Part):
    """What the head sees: the stream's mean over H and W, or spikes of one more neuron on a grid of places."""

    kind: Literal["mean", "spikes"]
    neuron: Neuron | None = None
    pool: bool = False
    grid: int = Field(1, ge=1, le=16)

    @model_validator(mode="after")
    def _is_possible(self) -> Tail:
        if (self.kind == "spikes") != (self.neuron is not None):
            raise ValueError("a tail of spikes, and no other, has a neuron")
        if self.kind == "mean" and (self.pool or self.grid != 1):
            raise ValueError("a tail of means has neither pool nor grid")
        return self


class Input(_Part):
    """What the network takes, and what an image goes through before: as evaluation had it.

    An RGB image is cut to the central square of `crop_ratio` times its short side, resized by area to `height` and
    `width`, divided by 255 and normalised by `mean` and `std`. Frames, counts of events, are taken as they are.
    """

    channels: _Count
    height: int = Field(ge=1, le=_MOST_SIDE)
    width: int = Field(ge=1, le=_MOST_SIDE)
    frames: bool = False
    crop_ratio: float = Field(1.0, gt=0, le=1)
    mean: tuple[_Mean, ...] = ()
    std: tuple[_Deviation, ...] = ()

    @model_validator(mode="after")
    def _is_normalised(self) -> Input:
        wanted = 0 if self.frames else self.channels
        if (len(self.mean), len(self.std)) != (wanted, wanted):
            raise ValueError(f"mean and std need {wanted} values each, got {len(self.mean)} and {len(self.std)}")
        return self


class Source(_Part):
    """Where the network came from. `weights_sha256` is that of the model's safetensors file, where it had one."""

    model: _Text = ""
    run_id: _Text = ""
    weights_sha256: _Text = ""
    code_version: _Text = ""


class Description(_Part):
    """A packed network."""

    name: _Text
    arch: _Text
    time_steps: int = Field(ge=1, le=_MOST_STEPS)
    num_classes: _Count
    classes: tuple[_Text, ...] = ()
    input: Input
    stem: Stem
    blocks: tuple[Block, ...] = Field(min_length=1, max_length=_MOST_BLOCKS)
    tail: Tail
    norm_per_step: bool = False  # whether the affines have a row for each time step
    source: Source = Source()

    @model_validator(mode="after")
    def _fits_together(self) -> Description:
        channels = self.stem.channels
        for number, block in enumerate(self.blocks):
            if block.in_channels != channels:
                raise ValueError(f"block {number} takes {block.in_channels} channels and is given {channels}")
            channels = block.out_channels
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(f"there are {len(self.classes)} names for {self.num_classes} classes")
        if self._most_values() > _MOST_VALUES:
            raise ValueError(f"a layer has {self._most_values():,} values over all steps; {_MOST_VALUES:,} is the most")
        return self

    def _most_values(self) -> int:
        """Of the largest tensor as it is kept: input, stem's output before its max-pool, or block's output, over T."""
        rows, columns = self.input.height, self.input.width
        layers: list[tuple[int, int]] = [(self.input.channels, 1), (self.stem.channels, self.stem.stride)]
        layers.append((self.stem.channels, 2 if self.stem.max_pool else 1))
        layers += [(block.out_channels, block.stride * (2 if block.pool else 1)) for block in self.blocks]
        most = 0
        for channels, shrink in layers:
            rows, columns = -(-rows // shrink), -(-columns // shrink)
            most = max(most, -(-channels // _PADDED) * _PADDED * rows * columns)
        return most * self.time_steps

    @property
    def features(self) -> int:
        """Values that the head sees."""
        return self.blocks[-1].out_channels * self.tail.grid**2

    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The tensors of the artifact by name: their safetensors type and shape.

        Signs are bits: bit i % 8 (least significant first) of byte i // 8 along the last axis is 1 where the sign of
        input channel i is +1; the last byte's other bits are zero. Affines are [scale, bias] of each output.
        """
        steps = self.time_steps if self.norm_per_step else 1
        stem = self.stem
        found = {
            "stem.weight": ("F32", (stem.channels, self.input.channels, stem.kernel, stem.kernel)),
            "stem.affine": ("F64", (2, 1, stem.channels)),
            "head.weight": ("F32", (self.num_classes, self.features)),
            "head.bias": ("F32", (self.num_classes,)),
        }
        for number, block in enumerate(self.blocks):
            name, ins, outs = f"blocks.{number}", block.in_channels, block.out_channels
            found[f"{name}.signs"] = ("U8", (outs, 3, 3, -(-ins // 8)))
            found[f"{name}.affine"] = ("F64", (2, steps, outs))
            if block.gate != "none":
                found[f"{name}.alpha"] = ("F64", (self.time_steps,))
            if block.shortcut == "projection":
                found[f"{name}.shortcut.weight"] = ("F32", (outs, ins))
                found[f"{name}.shortcut.affine"] = ("F64", (2, steps, outs))
        return found
