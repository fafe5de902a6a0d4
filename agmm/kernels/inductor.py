"""The fused operation on GPUs: the reference itself, compiled by `torch.compile` into one graph for each shape.

Inductor fuses the loop over T with norm, gate and residual add, and recomputes membranes in the backward instead of
keeping them. It takes the modules that the compiled passes take.

Axes: T time steps, B batch, C channels, H, W.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from agmm.kernels import compiled, reference
from agmm.kernels.counted import Counted, counted

# Graphs of one function: shapes of four stages, with and without a gradient, in training and in validation.
_MOST_GRAPHS = 64


def block_end(
    n: Tensor | Counted, r_TBCHW: Tensor | None, norm: nn.Module, gate: nn.Module, neuron: nn.Module | None
) -> tuple[Tensor, Tensor]:
    """As `agmm.kernels.reference.block_end`, for what `takes` and `agmm.kernels.compiled.knows`."""
    given = counted(n)
    x, fired = _graph()(given.n, given.unit, r_TBCHW, norm, gate, neuron and unhooked(neuron))
    return x, compiled.shown(neuron, x, fired) if neuron else fired


def takes(n: Tensor, norm: nn.Module) -> bool:
    """Whether a graph may be made: on a GPU, outside another graph, and of a norm that no other process shares."""
    return n.device.type == "cuda" and not torch.compiler.is_compiling() and not isinstance(norm, nn.SyncBatchNorm)


def unhooked(neuron: nn.Module) -> nn.Module:
    """The neuron with the same parameters, and no hooks: they would break the graph, and are shown the result."""
    if not neuron._forward_hooks:
        return neuron
    alike = copy.copy(neuron)
    alike._forward_hooks = type(neuron._forward_hooks)()
    return alike


def _block_end(n_TBCHW: Tensor, unit_C: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    return reference.block_end(Counted(n_TBCHW, unit=unit_C), *others)


@cache
def _graph() -> Any:
    return torch.compile(_block_end, dynamic=False, recompile_limit=_MOST_GRAPHS)  # type: ignore[call-overload]
