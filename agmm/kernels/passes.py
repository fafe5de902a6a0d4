"""The compiled passes in order: a block's end forward, and its gradients, once it is known how the stream came to be.

Axes: T time steps, B batch, C channels, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_reduce, distributed_c10d

from agmm.kernels import native
from agmm.kernels.algebra import GATES, Gate, Gradients, Norm, OverRanks, gradients, statistics
from agmm.kernels.native import Counts, Layout, Neuron, Stream, Term


@dataclass(frozen=True)
class Constants:
    """What a block's end is made of besides tensors; see `agmm.kernels.ops.block_end`."""

    eps: float
    gate: str
    leak: float
    threshold: float
    width: float
    detach_reset: bool
    hard: bool
    fires: bool
    group: str

    @property
    def neuron(self) -> Neuron:
        """As the passes take it."""
        return Neuron(self.leak, self.threshold, self.width, self.detach_reset, self.hard)

    def over_ranks(self) -> OverRanks:
        """Sums over the process group of that name; nothing for no name."""
        if not self.group:
            return lambda _: None
        group: Any = distributed_c10d._resolve_process_group(self.group)  # type: ignore[arg-type, attr-defined]
        return lambda sums: all_reduce(sums, group=group)


@dataclass(frozen=True)
class Forward:
    """Results of `forward`: x, its spikes (empty without a neuron), the norm, and the sums of n over P, `[T, B, C]`."""

    x: Tensor
    spikes: Tensor
    norm: Norm
    sums: Tensor


def forward(counts: Counts, r: Tensor | None, norm: Sequence[Tensor], alpha: Tensor | None, its: Constants) -> Forward:
    """x = gate * (scale * n + shift) + r and its spikes.

    Args:
        norm: weight and bias, and mean and variance where these are remembered.
        alpha: of the gate, where it has any.

    """
    layout = Layout.of(counts.values)
    needed = len(norm) == 2 or GATES[its.gate] is None
    sums = native.moments(layout, counts) if needed else layout.coefficients(2).zero_()
    used = _norm(sums, layout, norm, its)
    affine = (*used.affine(), Gate(its.gate, alpha, layout.pixels).forward(used, sums[0]))
    x = torch.empty_like(counts.values, dtype=torch.float32)
    spikes = torch.empty_like(x) if its.fires else None
    start, step = layout.repeated(r) if r is not None else (None, 0)
    native.forward(layout, its.neuron, Stream(start, step, (Term(counts, affine),)), x, spikes)
    return Forward(x, x.new_empty(0) if spikes is None else spikes, used, sums[0])


def _norm(sums_2TBC: Tensor, layout: Layout, norm: Sequence[Tensor], its: Constants) -> Norm:
    weight, bias, *remembered = norm
    if remembered:
        mean, var = (each.clone() for each in remembered)
        return Norm(weight, bias, mean, var, None, its.eps)
    return Norm(weight, bias, *statistics(sums_2TBC, layout.pixels, its.over_ranks()), its.eps)


@dataclass(frozen=True)
class Wanted:
    """How gradients of n and r are wanted: of n in `dtype`, and `times` a factor `[C]`, None for 1."""

    dtype: torch.dtype
    times: Tensor | None
    of_r: bool


def backward(
    grads: Sequence[Tensor | None],
    counts: Counts,
    stream: Stream,
    norm: Norm,
    sums: Tensor,
    alpha: Tensor | None,
    its: Constants,
    wanted: Wanted,
) -> tuple[Tensor, Tensor, Gradients]:
    """Gradients of n, of x (which is that of r), and of the parameters.

    Args:
        grads: of (x, spikes).
        stream: x, or what it is the sum of.
        norm, sums: of `forward`.

    """
    layout, centre = Layout.of(counts.values), norm.centre()
    g = torch.empty_like(counts.values, dtype=torch.float32)
    dense = [None if grad is None else layout.dense(grad) for grad in grads]
    sums_of_g = native.backward(layout, its.neuron, stream, dense, counts, centre, g)
    found = gradients(norm, Gate(its.gate, alpha, layout.pixels), sums, sums_of_g, its.over_ranks())
    in_place = not wanted.of_r and wanted.dtype == g.dtype
    dn = g if in_place else torch.empty_like(g, dtype=wanted.dtype)
    native.affine(layout, g, counts, centre, wanted.times, found.factors, dn)
    return dn, g, found
