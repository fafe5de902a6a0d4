"""What batch normalisation and the gate are, once the sums over pixels are known: forward and gradient, in float64.

A norm is y = scale * (n - mean) + bias; the gate of a step and a sample (and a channel) is k = sigmoid(alpha * M) with
M the mean of y. So all that they do to a value, and to its gradient, is affine in it, with coefficients that follow
from the sums of n, g and g * n. Nothing is detached: both terms of Eq. 13 are there.

Axes: T time steps, B batch, C channels, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# The means that an adaptive gate goes by are over (C, P) or over P.
GATES = {"none": 1.0, "constant": 0.5, "sample": None, "channel": None}
# Sums a tensor in place over the processes that share a batch.
OverRanks = Callable[[Tensor], None]


@dataclass(frozen=True)
class Norm:
    """A norm's parameters and statistics, all `[C]`.

    `count` is the number of values that the statistics are of; None where they are not the batch's, but remembered.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor | None
    eps: float

    def affine(self) -> tuple[Tensor, Tensor]:
        """(scale, shift), float32 `[C]`, of y = scale * n + shift: rounded as torch's own norm does on CPUs."""
        scale = (1 / torch.sqrt(self.var + self.eps)).float() * self.weight
        return scale, (self.bias.double() - self.centre().double() * scale.double()).float()

    def scale(self) -> Tensor:
        """As `affine`, in float64."""
        return self.weight.double() * self.inverse_std()

    def centre(self) -> Tensor:
        """The mean as the passes take it off, float32 `[C]`."""
        return self.mean.float()

    def offset(self) -> Tensor:
        """How far that is from the mean: the same for all values of a channel, so it would not average out."""
        return self.centre().double() - self.mean.double()

    def inverse_std(self) -> Tensor:
        """1 / sqrt(var + eps), float64 `[C]`."""
        return torch.rsqrt(self.var.double() + self.eps)


@dataclass(frozen=True)
class Gate:
    """A gate of a kind of `GATES`, with its alphas `[T]` where it has any, and the pixels P of a channel."""

    kind: str
    alpha: Tensor | None
    pixels: int

    def means(self, scale: Tensor, shift: Tensor, sums_TBC: Tensor) -> Tensor:
        """M: the means of y = scale * n + shift, `[T, B, 1]` or `[T, B, C]`, of sums of n over P."""
        means_TBC = scale.double() * (sums_TBC / self.pixels) + shift.double()
        return means_TBC.mean(dim=2, keepdim=True) if self.kind == "sample" else means_TBC

    def values(self, means: Tensor) -> Tensor:
        """k, shaped and typed like M."""
        assert self.alpha is not None
        return torch.sigmoid(self.alpha.to(means.dtype).view(-1, 1, 1) * means)

    def forward(self, norm: Norm, sums_TBC: Tensor) -> Tensor:
        """k of every value, float32 `[T, B, C]`."""
        if (constant := GATES[self.kind]) is not None:
            return torch.full(sums_TBC.shape, constant)
        # in float32 from the mean on, as the gate itself has it
        return self.values(self.means(*norm.affine(), sums_TBC).float()).expand(sums_TBC.shape).contiguous()

    def backward(self, norm: Norm, sums_TBC: Tensor, grads_2TBC: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(k, dL/dM by the number of values that M is the mean of, dL/dalpha `[T]`), of sums of g and g * (n - mean).

        dL/dk is the sum of g * y; k' = k * (1 - k) * alpha.
        """
        if (constant := GATES[self.kind]) is not None:
            return torch.tensor(constant), torch.tensor(0.0), None
        assert self.alpha is not None
        scale, bias = norm.scale(), norm.bias.double()
        means = self.means(scale, bias - norm.mean.double() * scale, sums_TBC)
        gates = self.values(means)
        by_gate = scale * grads_2TBC[1] + bias * grads_2TBC[0]
        if self.kind == "sample":
            by_gate = by_gate.sum(dim=2, keepdim=True)
        by_logit = by_gate * gates * (1 - gates)
        area = self.pixels * (sums_TBC.shape[2] if self.kind == "sample" else 1)
        by_value = by_logit * self.alpha.double().view(-1, 1, 1) / area
        return gates, by_value, (by_logit * means).sum(dim=(1, 2))


def statistics(sums_2TBC: Tensor, pixels: int, over_ranks: OverRanks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance `[C]`, and how many values a channel has, of the sums of n and of its squares.

    The difference of squares is safe here: the sums are of float32 values and were taken in float64.
    """
    _, steps, batch, channels = sums_2TBC.shape
    totals = torch.empty(3, channels, dtype=torch.float64)
    totals[:2], totals[2] = sums_2TBC.sum(dim=(1, 2)), steps * batch * pixels
    over_ranks(totals)
    count = totals[2, 0].clone()
    mean, square = totals[:2] / count
    return mean.clone(), (square - mean * mean).clamp_min_(0), count


@dataclass(frozen=True)
class Gradients:
    """dn = by_g * g + by_n * (n - centre) + rest, float32 `[T, B, C]`, `[C]`, `[T, B, C]`; and the parameters'."""

    factors: tuple[Tensor, Tensor, Tensor]
    weight: Tensor
    bias: Tensor
    alpha: Tensor | None


def gradients(norm: Norm, gate: Gate, sums_TBC: Tensor, grads_2TBC: Tensor, over_ranks: OverRanks) -> Gradients:
    """What follows from the sums of n, of g and of g * (n - centre) over P.

    The gradient of y is k * g + h, h the share of dL/dM of each value; the norm's is
    dn = scale * (dy - mean(dy) - (n - mean) / var * mean(dy * (n - mean))), the two means over all that was normed.
    """
    grads_2TBC = torch.stack([grads_2TBC[0], grads_2TBC[1] + norm.offset() * grads_2TBC[0]])
    k, h, alpha = gate.backward(norm, sums_TBC, grads_2TBC)
    centred_TBC = sums_TBC - gate.pixels * norm.mean.double()
    totals = torch.stack([k * grads_2TBC[0] + h * gate.pixels, k * grads_2TBC[1] + h * centred_TBC]).sum(dim=(1, 2))
    bias, weight = totals[0].clone(), totals[1] * norm.inverse_std()
    scale, by_n, mean = norm.scale(), torch.zeros_like(bias), torch.zeros_like(bias)
    if norm.count is not None:
        over_ranks(totals)
        mean, by_n = totals[0] / norm.count, -scale * norm.inverse_std().square() * totals[1] / norm.count
    rest = scale * (h - mean) + by_n * norm.offset()
    factors = (_full(scale * k, sums_TBC), by_n.float(), _full(rest, sums_TBC))
    return Gradients(factors, weight.float(), bias.float(), None if alpha is None else alpha.float())


def _full(factor: Tensor, like_TBC: Tensor) -> Tensor:
    return factor.float().expand_as(like_TBC).contiguous()
