"""The kernel gate: before the compiled passes are used, they are compared with the reference on this very machine.

What differs is switched off for the process, with a warning that names it. Axes: T time steps, B batch, C channels.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agmm.kernels import compiled, inductor, native, reference
from agmm.kernels.counted import Counted
from agmm.models.blocks import BatchNorm2d
from agmm.modulation import make_gate
from agmm.neuron import LIF

# Of a tensor's largest magnitude. The reference is in float64.
TOLERANCE = 1e-5
MARGIN = 1e-5  # a membrane that near the threshold may fire in one and not in the other
_SHAPE, _UNIT = (4, 3, 19, 5, 7), 0.13
_GATES = (("none", "sample"), ("constant", "sample"), ("agmm", "sample"), ("agmm", "channel"))


_Function = Callable[..., tuple[Tensor, Tensor]]
_verdicts: dict[str, bool] = {}


@torch.compiler.assume_constant_result
def agrees() -> bool:
    """Whether the compiled passes are there and may be used."""
    return not native.why_not() and verdict(f"fused neuron kernels ({native.path()})", difference)


def graph_agrees(device: torch.device) -> bool:
    """Whether the graph of `torch.compile` may be used on such a device."""
    return verdict(f"compiled graphs on {device.type}", partial(graph_difference, device))


def verdict(what: str, difference: Callable[[], str]) -> bool:
    """Whether `what` agrees with its reference. Compares once a process, and warns of a difference."""
    if what not in _verdicts:
        with (
            torch.inference_mode(False),  # the first use may be a validation
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(0)
            reason = difference()
        _verdicts[what] = not reason
        if reason:
            warnings.warn(
                f"The {what} are switched off and the reference runs in their place: {reason}.",
                RuntimeWarning,
                stacklevel=3,
            )
    return _verdicts[what]


def difference() -> str:
    """Where the compiled passes differ from the reference, in words; empty where they agree."""
    formats = (torch.contiguous_format, torch.channels_last)
    cases = itertools.product(_GATES, formats, ("hard", "soft"), (False, True))
    for (kind, scope), memory_format, reset, detach in cases:
        modules = BatchNorm2d(_SHAPE[2]), make_gate(kind, scope, _SHAPE[0]), LIF(0.5, 1.0, 1.0, detach, reset)
        n, *others = (_random(memory_format) for _ in range(4))
        inputs = [torch.round(n / _UNIT), *others, torch.rand(_SHAPE[2]) + 0.5] if detach else [n, *others, None]
        if found := compare(inputs, modules, _of_integers if detach else compiled.block_end):
            return f"{found} (gate {kind}/{scope}, {reset} reset, detach_reset={detach}, {memory_format})"
    return ""


def _of_integers(n: Counted, *others: Any) -> tuple[Tensor, Tensor]:
    """As `compiled.block_end`, of counts as the convolution of bits gives them."""
    return compiled.block_end(replace(n, sums=n.n.detach().to(torch.int16)), *others)


def graph_difference(device: torch.device) -> str:
    """As `difference`, of the graph, in one case: each takes seconds to compile. What it raises is a difference."""
    inputs = [*(_random(torch.channels_last).to(device) for _ in range(4)), torch.rand(_SHAPE[2], device=device) + 0.5]
    modules = BatchNorm2d(_SHAPE[2]).to(device), make_gate("agmm", "sample", _SHAPE[0]).to(device), LIF()
    try:
        return compare(inputs, modules, inductor.block_end)
    except Exception as error:  # noqa: BLE001, a compiler may fail in any way, and the reference needs none
        return f"{type(error).__name__}: {error}".splitlines()[0]


def compare(
    inputs: Sequence[Tensor | None],
    modules: tuple[nn.Module, nn.Module, LIF],
    function: _Function = compiled.block_end,
) -> str:
    """What differs, in words, of n, r, dL/dx, dL/dspikes, unit (None but for the first) and (norm, gate, neuron)."""
    truth = run(reference.block_end, inputs, modules, torch.float64)
    ours = run(function, inputs, modules, torch.float32)
    near = near_threshold(truth["x"], modules[2])
    if not torch.equal(ours["spikes"][:, ~near], truth["spikes"][:, ~near]):
        return "spikes differ"
    if not torch.equal(ours["spikes"], truth["spikes"]):
        return ""  # of a tie: what follows may differ
    wrong = [name for name in truth if deviation(ours[name], truth[name]) > TOLERANCE]
    return f"{', '.join(wrong)} differ" if wrong else ""


def run(
    function: _Function, inputs: Sequence[Tensor | None], modules: tuple[nn.Module, ...], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Results, gradients and running statistics by name, in float64, of copies of all inputs and modules in `dtype`."""
    norm, gate, neuron = (copy.deepcopy(module).to(dtype) for module in modules)
    n, r, grad_x, grad_spikes, unit = (None if each is None else each.to(dtype) for each in inputs)
    leaves = {name: each.detach().requires_grad_() for name, each in (("n", n), ("r", r)) if each is not None}
    leaves |= {name: each for module in (norm, gate) for name, each in module.named_parameters()}
    x, spikes = function(Counted(leaves["n"], unit=unit), leaves.get("r"), norm, gate, neuron)
    pairs = [(out, grad) for out, grad in ((x, grad_x), (spikes, grad_spikes)) if grad is not None]
    torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
    found = {"x": x, "spikes": spikes} | {f"the gradient of {name}": each.grad for name, each in leaves.items()}
    found |= {name: each for name, each in norm.named_buffers() if each.is_floating_point()}
    return {name: each.detach().double() for name, each in found.items() if each is not None}


@torch.no_grad()
def near_threshold(x_TBCHW: Tensor, neuron: LIF) -> Tensor:
    """Which neurons, `[B, C, H, W]`, come within `MARGIN` of the threshold at any step."""
    v, near = torch.zeros_like(x_TBCHW[0]), torch.zeros_like(x_TBCHW[0], dtype=torch.bool)
    for x in x_TBCHW:
        near |= (neuron.leak * v + x - neuron.threshold).abs() < MARGIN
        _, v = neuron.step(v, x)
    return near


def deviation(value: Tensor, truth: Tensor) -> float:
    """The largest difference, by the largest magnitude of the truth, or 1e-3 where that is smaller."""
    return float((value - truth).abs().max() / truth.abs().max().clamp_min(1e-3))


def _random(memory_format: torch.memory_format) -> Tensor:
    """Small integers times a scale, as a binary convolution gives them."""
    images = torch.randint(-9, 10, (_SHAPE[0] * _SHAPE[1], *_SHAPE[2:])) * _UNIT
    return images.contiguous(memory_format=memory_format).unflatten(0, _SHAPE[:2])
