"""What is compiled, in plain torch and NumPy, rounded and summed up in its order: `agmm.kernels.native`, name by name.

Axes: T time steps, B batch, C channels, H, W, P pixels; N images, I input and O output channels.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agmm.binary import hard_sign
from agmm.kernels import convolution, native
from agmm.kernels.native import Counts, Layout, Neuron, Stream

_RUN = 32  # pixels summed in float32 before they are added up in float64; kRun in native/lines.h
_BAND = 512  # places of padded rows that are summed before they are added up; kBandPlaces in native/events.cpp
_TASKS, _SHARE = 32, 32  # kTasks and kShare in native/api.cpp


def install(monkeypatch):
    """Have them run in place of the compiled ones."""
    for function in (moments, forward, backward, affine, weight_gradient):
        monkeypatch.setattr(native, function.__name__, function)
    monkeypatch.setattr(convolution, "convolve_bits", convolve_bits)


def moments(layout: Layout, n: Counts) -> Tensor:
    values = _values(n).double().flatten(3)
    return torch.stack([values.sum(dim=3), values.square().sum(dim=3)])


def forward(layout: Layout, neuron: Neuron, stream: Stream, x: Tensor | None, spikes: Tensor | None) -> None:
    x_T = _sum_of(stream, layout.steps)
    if x is not None:
        x.copy_(x_T)
    if spikes is not None:
        spikes.copy_(torch.stack([fired for _, fired in _membranes(neuron, x_T)]))


def backward(
    layout: Layout,
    neuron: Neuron,
    stream: Stream,
    grads: Iterable[Tensor | None],
    n: Counts | None,
    centre: Tensor | None,
    g: Tensor,
) -> Tensor:
    grad_x, grad_spikes = grads
    g.zero_()
    if grad_spikes is not None:
        membranes = [*_membranes(neuron, _sum_of(stream, layout.steps))]
        dv = torch.zeros_like(g[0])
        for t in reversed(range(len(g))):
            g[t] = _step_back(neuron, *membranes[t], dv, grad_spikes[t])
            dv = neuron.leak * g[t]
    if grad_x is not None:
        g += grad_x
    if n is None:
        return g.new_empty(0)
    return torch.stack([_sums(layout, g), _sums(layout, g * (_values(n) - _of_channel(centre)))])


def affine(
    layout: Layout,
    g: Tensor,
    n: Counts,
    centre: Tensor,
    times: Tensor | None,
    factors: tuple[Tensor, Tensor, Tensor],
    dn: Tensor,
) -> None:
    by_g, by_n, rest = factors
    found = _of_sample(by_g) * g + _of_channel(by_n) * (_values(n) - _of_channel(centre)) + _of_sample(rest)
    dn.copy_(found if times is None else found * _of_channel(times))


def convolve_bits(bits: Tensor, weights: Tensor, stride: int) -> Tensor:
    x = spikes_of(bits, weights.shape[1])[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
    sums = F.conv2d(x, hard_sign(weights), stride=stride, padding=1)
    return sums.to(torch.int16).contiguous(memory_format=torch.channels_last)


def spikes_of(bits: Tensor, channels: int) -> Tensor:
    """Float32 `[N, H + 2, W + 2, I]`."""
    return (bits.unsqueeze(4) >> torch.arange(64) & 1).flatten(3)[..., :channels].float()


def weight_gradient(bits: Tensor, grad: Tensor, dweights: Tensor) -> None:
    outs, ins = dweights.shape[:2]
    spikes_RWI = spikes_of(bits, ins).flatten(0, 1).numpy()  # R: padded rows of all images
    grads_RWO = F.pad(grad.float(), (1, 1, 1, 1)).permute(0, 2, 3, 1).flatten(0, 1).numpy()
    inside_RW = F.pad(torch.ones(len(bits), *grad.shape[2:], dtype=torch.bool), (1, 1, 1, 1)).flatten(0, 1).numpy()
    rows = max(1, _BAND // inside_RW.shape[1])
    begins = [*range(0, len(inside_RW), rows)]
    parts = min(-(-_TASKS // (bits.shape[3] * -(-outs // _SHARE))), len(begins))
    of_parts = np.zeros((parts, outs, ins, 3, 3), np.float32)
    for band, begin in enumerate(begins):
        part = next(part for part in range(parts) if band < (part + 1) * len(begins) // parts)
        row, column = np.nonzero(inside_RW[begin : begin + rows])
        fired_PI = spikes_RWI[row + begin, column]
        dense_I = 2 * fired_PI.sum(axis=0) > len(row)
        places_PI = np.where(dense_I, 1 - fired_PI, fired_PI)
        for y, x in np.ndindex(3, 3):
            reached_PO = grads_RWO[row + begin + 1 - y, column + 1 - x]
            found_OI = _in_turn(reached_PO[:, :, None] * places_PI[:, None])
            whole_O1 = _in_turn(reached_PO)[:, None]
            of_parts[part, :, :, y, x] += np.where(dense_I, whole_O1 - found_OI, found_OI)
    dweights.copy_(torch.from_numpy(_in_turn(of_parts)))


def _in_turn(values: np.ndarray) -> np.ndarray:
    """The sum over the first axis, one after the other."""
    total = np.zeros(values.shape[1:], np.float32)
    for value in values:
        total += value
    return total


def _values(n: Counts) -> Tensor:
    values = n.values.float()
    return values if n.unit is None else values * _of_channel(n.unit)


def _sum_of(stream: Stream, steps: int) -> Tensor:
    total = None if stream.r is None else stream.r.expand(steps, *stream.r.shape[1:])
    for term in stream.terms:
        scale, shift, gate = term.affine
        # a product of floats is exact in float64, so that the sum is rounded once, as by a fused multiply-add
        normed = (_values(term.n).double() * _of_channel(scale) + _of_channel(shift)).float()
        added = _of_sample(gate) * normed
        total = added if total is None else added + total
    return total


def _membranes(neuron: Neuron, x_T: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(membrane before the reset, spikes) of each step. Eq. 1, 3, 4."""
    v = torch.zeros_like(x_T[0])
    for x in x_T:
        u = neuron.leak * v + x
        fired = (u >= neuron.threshold).float()
        yield u, fired
        v = u * (1 - fired) if neuron.hard else u - neuron.threshold * fired


def _step_back(neuron: Neuron, u: Tensor, fired: Tensor, dv: Tensor, grad: Tensor) -> Tensor:
    triangle = (neuron.width - (u - neuron.threshold).abs()).clamp_min(0) * (1 / neuron.width**2)
    by_reset = 0 if neuron.detach_reset else -(u if neuron.hard else neuron.threshold) * dv
    return (by_reset + grad) * triangle + (dv * (1 - fired) if neuron.hard else dv)


def _sums(layout: Layout, values_TBCHW: Tensor) -> Tensor:
    """Sums over P, `[T, B, C]`, where channels come last or P is 1; else the order depends on the processor."""
    assert layout.channels_last or layout.pixels == 1
    totals = 0
    for run in values_TBCHW.flatten(3).split(_RUN, dim=3):
        total = torch.zeros_like(run[..., 0])
        for value in run.unbind(dim=3):
            total = total + value
        totals = totals + total.double()
    return totals


def _of_channel(x_C: Tensor) -> Tensor:
    return x_C.view(-1, 1, 1)


def _of_sample(x_TBC: Tensor) -> Tensor:
    return x_TBC[..., None, None]
