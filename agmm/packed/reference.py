"""What a packed network computes, in NumPy and float64: slow, short, the truth that other runtimes are held against.

Axes: T time steps, B batch, H, W, C channels, O output channels, K classes. Channels come last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agmm.packed.description import POOLED, Block, Description, Neuron

Array = NDArray[np.float64]
# Told of each binary convolution: its number, its integer inputs [T, B, H, W, I] and results [T, B, H', W', O].
Watch = Callable[[int, NDArray[Any], NDArray[Any]], None]


@dataclass
class Counts:
    """What an inference did, by block, in sums over all images and steps.

    Attributes:
        neurons: neurons, once for each step.
        spikes: how many of them fired.
        sops: spikes that arrived at an output of the block's convolution; pooled spikes count once a pool.

    """

    neurons: list[int] = field(default_factory=list)
    spikes: list[int] = field(default_factory=list)
    sops: list[int] = field(default_factory=list)


def unpack_signs(signs_O33B: NDArray[np.uint8], in_channels: int) -> NDArray[np.int8]:
    """Signs +1 and -1, `[O, 3, 3, I]`, from an artifact's bits."""
    bits = np.unpackbits(signs_O33B, axis=-1, count=in_channels, bitorder="little")
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def pack_signs(signs_O33I: NDArray[Any]) -> NDArray[np.uint8]:
    """An artifact's bits from signs +1 and -1; padding bits are zero."""
    return np.packbits(signs_O33I > 0, axis=-1, bitorder="little")


def binary_convolution(x_NHWI: NDArray[Any], signs_O33I: NDArray[np.int8], stride: int) -> NDArray[np.int32]:
    """3x3, zero padding of 1: integers `[N, H, W, I]` to integers `[N, H', W', O]`, exact."""
    count, height, width, _ = x_NHWI.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = np.pad(x_NHWI, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float32)  # integers below 2^24: exact
    out = np.zeros((count, rows, columns, len(signs_O33I)), np.float32)
    for i in range(3):
        for j in range(3):
            seen = padded[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            out += seen @ signs_O33I[:, i, j].T.astype(np.float32)
    return out.astype(np.int32)


def real_convolution(x_NHWI: Array, weight_OIkk: NDArray[Any], stride: int) -> Array:
    """k x k, zero padding of k // 2, `[N, H, W, I]` to `[N, H', W', O]`."""
    kernel = weight_OIkk.shape[2]
    half, (height, width) = kernel // 2, x_NHWI.shape[1:3]
    rows, columns = -(-height // stride), -(-width // stride)
    padded = np.pad(x_NHWI, ((0, 0), (half, half), (half, half), (0, 0)))
    out: Any = 0.0
    for i in range(kernel):
        for j in range(kernel):
            seen = padded[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            out = out + seen @ weight_OIkk[:, :, i, j].T.astype(np.float64)
    return out


def fire(neuron: Neuron, x_T: Array) -> NDArray[np.bool_]:
    """Input current `[T, ...]` to spikes (Eq. 1-4)."""
    v, spikes = np.full(x_T.shape[1:], neuron.start), []
    for x in x_T:
        u = neuron.leak * v + x
        spike = u >= neuron.threshold
        v = np.where(spike, 0.0, u) if neuron.reset == "hard" else u - neuron.threshold * spike
        spikes.append(spike)
    return np.stack(spikes)


def pool_sums(x_NHWC: Array, size: int) -> tuple[Array, Array]:
    """Sums over windows of `size` x `size` that do not overlap, and how many values [H', W', 1] each window has."""
    sums: Any = x_NHWC
    count: Any = np.ones((*x_NHWC.shape[1:3], 1))
    for axis in (1, 2):
        starts = np.arange(0, x_NHWC.shape[axis], size)
        sums, count = np.add.reduceat(sums, starts, axis=axis), np.add.reduceat(count, starts, axis=axis - 1)
    return sums, count


def average_pool(x_TBHWC: Array, size: int) -> Array:
    """Means over windows; at a border that is too narrow, over what is there."""
    sums, count = pool_sums(x_TBHWC.reshape(-1, *x_TBHWC.shape[2:]), size)
    return (sums / count).reshape(*x_TBHWC.shape[:2], *sums.shape[1:])


def max_pool(x_NHWC: Array) -> Array:
    """3x3, stride 2, padding 1."""
    height, width = x_NHWC.shape[1:3]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    padded = np.pad(x_NHWC, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=-np.inf)
    windows = [padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for i in range(3) for j in range(3)]
    return np.maximum.reduce(windows)


def run(
    description: Description,
    tensors: Mapping[str, NDArray[Any]],
    images: NDArray[Any],
    watch: Watch = lambda *_: None,
) -> tuple[Array, Counts]:
    """Mean logits over T `[B, K]`, and what they took.

    images: normalised `[B, H, W, C]`, or frames `[B, T, H, W, C]`.
    """
    counts = Counts()
    x_TBHWC = _stem(description, tensors, np.asarray(images, np.float64))
    for number, block in enumerate(description.blocks):
        spikes = fire(block.neuron, x_TBHWC)
        seen = _integers(spikes, block.pool)
        signs = unpack_signs(tensors[f"blocks.{number}.signs"], block.in_channels)
        folded = binary_convolution(seen.reshape(-1, *seen.shape[2:]), signs, block.stride)
        results = folded.reshape(*seen.shape[:2], *folded.shape[1:])
        watch(number, seen, results)
        _count(counts, spikes, seen, block)
        x_TBHWC = _gated(tensors, number, block, results) + _shortcut(tensors, number, block, x_TBHWC)
    features_BF = _tail(description, x_TBHWC)
    head = tensors["head.weight"].astype(np.float64)
    return features_BF @ head.T + tensors["head.bias"].astype(np.float64), counts


def _stem(description: Description, tensors: Mapping[str, NDArray[Any]], images: Array) -> Array:
    """A static image is convolved once and shown at every step."""
    frames, stem = description.input.frames, description.stem
    folded = images.swapaxes(0, 1).reshape(-1, *images.shape[2:]) if frames else images
    scale, bias = tensors["stem.affine"][:, 0]
    out = real_convolution(folded, tensors["stem.weight"], stem.stride) * scale + bias
    out = max_pool(out) if stem.max_pool else out
    steps = description.time_steps
    return out.reshape(steps, -1, *out.shape[1:]) if frames else np.broadcast_to(out, (steps, *out.shape))


def _integers(spikes: NDArray[np.bool_], pool: bool) -> NDArray[np.int8]:
    """Spikes as 0 and 1, or four times their averages over 2x2: always integers, 0 to 4."""
    return (POOLED * average_pool(spikes.astype(np.float64), 2) if pool else spikes).astype(np.int8)


def _gated(tensors: Mapping[str, NDArray[Any]], number: int, block: Block, results: NDArray[Any]) -> Array:
    """Affine, then Y = sigmoid(alpha * mean of X) * X (Eq. 11, 12)."""
    scale, bias = tensors[f"blocks.{number}.affine"][:, :, None, None, None]
    y = results * (scale * block.unit) + bias
    if block.gate == "none":
        return y
    alpha = tensors[f"blocks.{number}.alpha"].reshape(-1, 1, 1, 1, 1)
    mean = y.mean(axis=(2, 3, 4) if block.gate == "sample" else (2, 3), keepdims=True)
    return y / (1 + np.exp(-alpha * mean))


def _shortcut(tensors: Mapping[str, NDArray[Any]], number: int, block: Block, x_TBHWC: Array) -> Any:
    if block.shortcut != "projection":
        return x_TBHWC if block.shortcut == "identity" else 0.0
    pooled = average_pool(x_TBHWC, block.stride)
    scale, bias = tensors[f"blocks.{number}.shortcut.affine"][:, :, None, None, None]
    return (pooled @ tensors[f"blocks.{number}.shortcut.weight"].T.astype(np.float64)) * scale + bias


def _tail(description: Description, x_TBHWC: Array) -> Array:
    tail = description.tail
    if tail.neuron is None:
        return x_TBHWC.mean(axis=(0, 2, 3))
    spikes = fire(tail.neuron, x_TBHWC).astype(np.float64) * tail.neuron.amplitude
    maps_BHWC = (average_pool(spikes, 2) if tail.pool else spikes).mean(axis=0)
    return _grid(maps_BHWC, tail.grid).transpose(0, 3, 1, 2).reshape(len(maps_BHWC), -1)


def _grid(x_BHWC: Array, grid: int) -> Array:
    """Means over the places of a grid, as torch's adaptive average pool draws it: they overlap where sizes are odd."""
    for axis in (1, 2):
        size = x_BHWC.shape[axis]
        ends = [(place * size // grid, -(-(place + 1) * size // grid)) for place in range(grid)]
        places = [x_BHWC.take(range(*end), axis=axis).mean(axis=axis) for end in ends]
        x_BHWC = np.stack(places, axis=axis)
    return x_BHWC


def _count(counts: Counts, spikes: NDArray[np.bool_], seen: NDArray[np.int8], block: Block) -> None:
    ones = np.ones((1, 3, 3, 1), np.int8)
    arriving = (seen > 0).sum(axis=-1, keepdims=True)
    arrivals = binary_convolution(arriving.reshape(-1, *arriving.shape[2:]), ones, block.stride)
    counts.neurons.append(spikes.size)
    counts.spikes.append(int(spikes.sum()))
    counts.sops.append(int(arrivals.sum(dtype=np.int64)) * block.out_channels)
