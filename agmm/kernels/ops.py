"""The compiled passes as torch operators, with their gradients: `torch.compile`, autocast and autograd pass through.

Two operators, `agmm::block_end` and `agmm::spikes`, and one for the gradient of each. They take what modules hold;
`agmm.kernels.block` calls them. Float32 on the CPU.

Axes: T time steps, B batch, C channels, H, W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agmm.kernels import native
from agmm.kernels.algebra import GATES, Norm
from agmm.kernels.native import Counts, Layout, Neuron, Stream
from agmm.kernels.passes import Constants, Wanted, backward, forward


@torch.library.custom_op("agmm::block_end", mutates_args=(), device_types="cpu")
def block_end(
    n: Tensor,
    whole: Tensor | None,
    unit: Tensor | None,
    in_units: bool,  # noqa: ARG001
    r: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    alpha: Tensor | None,
    eps: float,
    gate: str,
    leak: float,
    threshold: float,
    width: float,
    detach_reset: bool,
    hard: bool,
    fires: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A convolution's output and a stream `r` to (x, spikes), `[T, B, C, H, W]`.

    Args:
        n, whole, unit, in_units: see `agmm.kernels.counted.Counted`, whose `sums` are `whole`.
        weight, bias, eps: of the norm, `[C]`.
        mean, var: remembered statistics `[C]`; None for the batch's own.
        alpha, gate: see `agmm.kernels.algebra.Gate`.
        leak, threshold, width, detach_reset, hard: of the neuron.
        fires: whether there is a neuron; without one, spikes are empty.
        group: name of the process group that shares the batch's statistics, or empty.

    Returns:
        x and spikes, then what the gradient needs: the statistics used, mean and var `[C]`, how many values they are
        of, and the sums of the output over H and W, `[T, B, C]`.

    """
    its = Constants(eps, gate, leak, threshold, width, detach_reset, hard, fires, group)
    remembered = [] if mean is None or var is None else [mean, var]
    done = forward(counts_of(n if whole is None else whole, unit), r, [weight, bias, *remembered], alpha, its)
    count = n.new_zeros((), dtype=torch.float64) if done.norm.count is None else done.norm.count
    return done.x, done.spikes, done.norm.mean, done.norm.var, count, done.sums.clone()


def counts_of(values: Tensor, unit: Tensor | None) -> Counts:
    """A convolution's output as the passes take it."""
    return Counts(Layout.of(values).dense(values), unit)


@block_end.register_fake
def _(n: Tensor, whole: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    remembered, fires = rest[5], rest[-2]
    like = _like(n if whole is None else whole).to(torch.float32)
    statistic = like.new_empty(n.shape[2], dtype=torch.float64 if remembered is None else torch.float32)
    count, sums = like.new_empty((), dtype=torch.float64), like.new_empty(n.shape[:3], dtype=torch.float64)
    fired = torch.empty_like(like) if fires else like.new_empty(0)
    return like, fired, statistic, torch.empty_like(statistic), count, sums


@torch.library.custom_op("agmm::block_end_backward", mutates_args=(), device_types="cpu")
def block_end_backward(
    grad_x: Tensor | None,
    grad_spikes: Tensor | None,
    values: Tensor,
    unit: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    count: Tensor | None,
    sums: Tensor,
    alpha: Tensor | None,
    half: bool,
    in_units: bool,
    adds: bool,
    eps: float,
    gate: str,
    leak: float,
    threshold: float,
    width: float,
    detach_reset: bool,
    hard: bool,
    fires: bool,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (n, r, weight, bias, alpha); those of r and alpha are empty where there are none.

    `values` are n or the integers in its place, `half` says whether its gradient is bfloat16, `adds` whether there is
    an r, and `count` is None where the statistics were remembered.
    """
    its = Constants(eps, gate, leak, threshold, width, detach_reset, hard, fires, group)
    norm = Norm(weight, bias, mean, var, count, eps)
    counts = counts_of(values, unit)
    wanted = Wanted(torch.bfloat16 if half else torch.float32, None if in_units else unit, adds)
    stream = Stream(x, x.stride(0))
    dn, g, found = backward((grad_x, grad_spikes), counts, stream, norm, sums, alpha, its, wanted)
    empty = x.new_empty(0)
    return dn, g if adds else empty, found.weight, found.bias, found.alpha if found.alpha is not None else empty.clone()


@block_end_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    x, weight, bias, alpha, half, _, adds, _, gate = (inputs[i] for i in (4, 5, 6, 11, 12, 13, 14, 15, 16))
    dr = torch.empty_like(x) if adds else x.new_empty(0)
    dalpha = torch.empty_like(alpha) if GATES[gate] is None else x.new_empty(0)
    dn = torch.empty_like(x, dtype=torch.bfloat16 if half else torch.float32)
    return dn, dr, torch.empty_like(weight), torch.empty_like(bias), dalpha


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    n, whole, unit, in_units, r, weight, bias, remembered, _, alpha, *constants = inputs
    x, _, mean, var, count, sums = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, var, count, sums)
    values = n if whole is None else whole
    ctx.save_for_backward(values, unit, x, weight, bias, mean, var, count if remembered is None else None, sums, alpha)
    ctx.constants = n.dtype == torch.bfloat16, in_units, r is not None, *constants


def _back(ctx: Any, grad_x: Tensor | None, grad_spikes: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_x is None and grad_spikes is None:
        return (None,) * INPUTS
    grads = block_end_backward(grad_x, grad_spikes, *ctx.saved_tensors, *ctx.constants)
    return as_inputs(*grads)


def as_inputs(dn: Tensor, dr: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients as those of the inputs of `block_end`."""
    dr_or_none, alpha_or_none = (each if each.numel() else None for each in (dr, alpha))
    found = (dn, None, None, None, dr_or_none, weight, bias, None, None, alpha_or_none)
    return found + (None,) * (INPUTS - len(found))


INPUTS = 19
block_end.register_autograd(_back, setup_context=_keep)


@torch.library.custom_op("agmm::spikes", mutates_args=(), device_types="cpu")
def spikes(x: Tensor, leak: float, threshold: float, width: float, detach_reset: bool, hard: bool) -> Tensor:
    """The neuron alone: a current `[T, ...]` to spikes alike."""
    fired = _like(x)
    neuron = Neuron(leak, threshold, width, detach_reset, hard)
    native.forward(Layout.lines(x), neuron, Stream(*Layout.of(x).repeated(x)), None, fired)
    return fired


@spikes.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _like(x)


def _like(x: Tensor) -> Tensor:
    """Room for all steps of `x`, in its layout."""
    return torch.empty_like(Layout.of(x).repeated(x)[0][:1].expand(x.shape))


@torch.library.custom_op("agmm::spikes_backward", mutates_args=(), device_types="cpu")
def spikes_backward(
    grad: Tensor, x: Tensor, leak: float, threshold: float, width: float, detach_reset: bool, hard: bool
) -> Tensor:
    """The gradient of `spikes`' current."""
    layout, g = Layout.of(x), _like(x)
    neuron, stream = Neuron(leak, threshold, width, detach_reset, hard), Stream(*layout.repeated(x))
    native.backward(Layout.lines(x), neuron, stream, (None, layout.dense(grad)), None, None, g)
    return g


@spikes_backward.register_fake
def _(_grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _like(x)


def _keep_current(ctx: Any, inputs: tuple[Any, ...], **_: Tensor) -> None:
    x, *ctx.constants = inputs
    ctx.save_for_backward(x)


def _back_current(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return spikes_backward(grad, *ctx.saved_tensors, *ctx.constants), *(None for _ in ctx.constants)


spikes.register_autograd(_back_current, setup_context=_keep_current)
