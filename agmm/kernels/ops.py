"""The compiled passes as torch operators, with their gradients: `torch.compile`, autocast and autograd pass through.

Two operators, `agmm::block_end` and `agmm::spikes`, and one for the gradient of each. They take what modules hold;
`agmm.kernels.block` calls them. Float32 on the CPU.

Axes: T time steps, B batch, C channels, H, W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_reduce, distributed_c10d

from agmm.kernels import native
from agmm.kernels.algebra import GATES, Gate, Gradients, Norm, OverRanks, gradients, statistics
from agmm.kernels.native import Counts, Layout, Neuron


def _over_ranks(group: str) -> OverRanks:
    """Sums over the process group of that name; nothing for no name."""
    if not group:
        return lambda _: None
    found: Any = distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type, attr-defined]
    return lambda sums: all_reduce(sums, group=found)


@torch.library.custom_op("agmm::block_end", mutates_args=(), device_types="cpu")
def block_end(
    n: Tensor,
    unit: Tensor | None,
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
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A convolution's output `n` and a stream `r` to (x, spikes), `[T, B, C, H, W]`.

    Args:
        unit: what `n` is in units of, `[C]`, a constant; None for 1.
        weight, bias, eps: of the norm, `[C]`.
        mean, var: remembered statistics `[C]`; None for the batch's own.
        alpha, gate: see `agmm.kernels.algebra.Gate`.
        leak, threshold, width, detach_reset, hard: of the neuron.
        group: name of the process group that shares the batch's statistics, or empty.

    Returns:
        x and spikes, then what the gradient needs: the statistics used, mean and var `[C]`, how many values they are
        of, and the sums of `n` over H and W, `[T, B, C]`.

    """
    layout = Layout.of(n)
    counts = Counts(layout.dense(n), unit)
    needed = mean is None or GATES[gate] is None
    sums = native.moments(layout, counts) if needed else layout.coefficients(2).zero_()
    count = torch.zeros((), dtype=torch.float64)
    if mean is None or var is None:
        mean, var, count = statistics(sums, layout.pixels, _over_ranks(group))
    else:
        mean, var = mean.clone(), var.clone()
    norm = Norm(weight, bias, mean, var, count, eps)
    affine = (*norm.affine(), Gate(gate, alpha, layout.pixels).forward(norm, sums[0]))
    stream, step = layout.repeated(r) if r is not None else (None, 0)
    x, spikes = torch.empty_like(counts.values), torch.empty_like(counts.values)
    native.forward(layout, Neuron(leak, threshold, width, detach_reset, hard), counts, affine, stream, step, x, spikes)
    return x, spikes, mean, var, count, sums[0].clone()


@block_end.register_fake
def _(n: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    kind = torch.float64 if rest[4] is None else torch.float32  # the remembered mean
    like = _like(n)
    statistic = n.new_empty(n.shape[2], dtype=kind)
    count, sums = n.new_empty((), dtype=torch.float64), n.new_empty(n.shape[:3], dtype=torch.float64)
    return like, torch.empty_like(like), statistic, torch.empty_like(statistic), count, sums


@torch.library.custom_op("agmm::block_end_backward", mutates_args=(), device_types="cpu")
def block_end_backward(
    grad_x: Tensor | None,
    grad_spikes: Tensor | None,
    n: Tensor,
    unit: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    count: Tensor | None,
    sums: Tensor,
    alpha: Tensor | None,
    eps: float,
    gate: str,
    leak: float,
    threshold: float,
    width: float,
    detach_reset: bool,
    hard: bool,
    group: str,
    stream: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (n, r, weight, bias, alpha); those of r and alpha are empty where there are none.

    `stream` says whether there is an r, and `count` is None where the statistics were remembered.
    """
    layout = Layout.of(n)
    counts, g = Counts(layout.dense(n), unit), torch.empty_like(x)
    grads = tuple(None if grad is None else layout.dense(grad) for grad in (grad_x, grad_spikes))
    neuron, norm = Neuron(leak, threshold, width, detach_reset, hard), Norm(weight, bias, mean, var, count, eps)
    centre = norm.centre()
    sums_of_g = native.backward(layout, neuron, x, x.stride(0), grads, counts, centre, g)
    its: Gradients = gradients(norm, Gate(gate, alpha, layout.pixels), sums, sums_of_g, _over_ranks(group))
    dn = torch.empty_like(g) if stream else g
    native.affine(layout, g, counts, centre, its.factors, dn)
    alpha_T = its.alpha if its.alpha is not None else n.new_empty(0)
    return dn, g if stream else n.new_empty(0), its.weight, its.bias, alpha_T


@block_end_backward.register_fake
def _(*inputs: Any) -> tuple[Tensor, ...]:
    n, x, weight, bias, alpha, gate, stream = (inputs[i] for i in (2, 4, 5, 6, 11, 13, 20))
    dr = torch.empty_like(x) if stream else n.new_empty(0)
    dalpha = torch.empty_like(alpha) if GATES[gate] is None else n.new_empty(0)
    return torch.empty_like(x), dr, torch.empty_like(weight), torch.empty_like(bias), dalpha


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    n, unit, r, weight, bias, remembered, _, alpha, *ctx.constants = inputs
    x, _, mean, var, count, sums = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, var, count, sums)
    ctx.save_for_backward(n, unit, x, weight, bias, mean, var, count if remembered is None else None, sums, alpha)
    ctx.stream = r is not None


def _back(ctx: Any, grad_x: Tensor | None, grad_spikes: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_x is None and grad_spikes is None:
        return (None,) * 16
    grads = block_end_backward(grad_x, grad_spikes, *ctx.saved_tensors, *ctx.constants, ctx.stream)
    dn, dr, weight, bias, alpha = grads
    return (
        dn,
        None,
        dr if ctx.stream else None,
        weight,
        bias,
        None,
        None,
        alpha if alpha.numel() else None,
        *(None for _ in ctx.constants),
    )


block_end.register_autograd(_back, setup_context=_keep)


@torch.library.custom_op("agmm::spikes", mutates_args=(), device_types="cpu")
def spikes(x: Tensor, leak: float, threshold: float, width: float, detach_reset: bool, hard: bool) -> Tensor:
    """The neuron alone: a current `[T, ...]` to spikes alike."""
    current, step = Layout.of(x).repeated(x)
    fired = _like(x)
    neuron = Neuron(leak, threshold, width, detach_reset, hard)
    native.current(Layout.lines(x), neuron, current, step, fired)
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
    layout = Layout.of(x)
    current, step = layout.repeated(x)
    g = _like(x)
    neuron = Neuron(leak, threshold, width, detach_reset, hard)
    native.backward(Layout.lines(x), neuron, current, step, (None, layout.dense(grad)), None, None, g)
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
