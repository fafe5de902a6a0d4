"""The fused operation on the modules of a block, by the compiled passes.

Axes: T time steps, B batch, C channels, H, W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agmm.kernels import native, ops
from agmm.kernels.counted import Counted, counted
from agmm.models.blocks import BatchNorm2d
from agmm.modulation import AGMM, Halve
from agmm.neuron import IF, LIF

_SILENT = (0.0, 1.0, 1.0, False, True)  # in place of a neuron's constants
_NORMS = (BatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def block_end(
    n: Tensor | Counted,
    r_TBCHW: Tensor | None,
    norm: nn.Module,
    gate: nn.Module,
    neuron: nn.Module | None,
    run: Callable[..., Any] = ops.block_end,
) -> tuple[Tensor, Tensor]:
    """As `agmm.kernels.reference.block_end`, for what `takes` and `knows`; by `run`, which is as `ops.block_end`."""
    assert isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
    own = norm.training or norm.running_mean is None
    remembered = (None, None) if own else (norm.running_mean, norm.running_var)
    given = counted(n)
    x, fired, mean, var, count, _ = run(
        given.n,
        given.sums,
        given.unit,
        given.in_units,
        r_TBCHW,
        norm.weight,
        norm.bias,
        *remembered,
        gate.alpha if isinstance(gate, AGMM) else None,
        norm.eps,
        _kind(gate),
        *(constants(neuron) if neuron else _SILENT),
        neuron is not None,
        _group(norm) if own else "",
    )
    if norm.training and norm.running_mean is not None:
        _remember(norm, mean, var, count)
    return x, shown(neuron, x, fired) if neuron else fired


def spikes(x_T: Tensor, neuron: nn.Module) -> Tensor:
    """A current `[T, ...]` to the spikes of neurons that `knows_neuron`."""
    return shown(neuron, x_T, ops.spikes(x_T, *constants(neuron)))


@torch.no_grad()
def _remember(norm: nn.BatchNorm2d | nn.SyncBatchNorm, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """The running statistics as torch has them: the variance is that of a sample, without bias."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / norm.num_batches_tracked.double()
    for running, batch in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        running.copy_(running * (1 - share) + batch.float() * share)


def takes(n: Tensor, r: Tensor | None = None) -> bool:
    """Whether the passes take a current `[T, ...]` and a stream to add."""
    return n.dtype == torch.float32 and _takes(n) and (r is None or _alike(r, n))


def takes_counted(n: Counted, r: Tensor | None) -> bool:
    """As `takes`, of a convolution's output."""
    fits = n.sums is not None or n.n.dtype == torch.float32
    return fits and _takes(n.n) and (r is None or (r.dtype == torch.float32 and _alike(r, n.n)))


def _takes(n: Tensor) -> bool:
    return n.device.type == "cpu" and 0 < n.shape[0] <= native.MOST_STEPS and n.numel() > 0


def _alike(r: Tensor, n: Tensor) -> bool:
    return r.device == n.device and r.shape == n.shape


def knows(norm: nn.Module, gate: nn.Module, neuron: nn.Module | None, steps: int) -> bool:
    """Whether the passes compute what these modules do over T = `steps`, and nobody watches them do it."""
    known = type(norm) in _NORMS and norm.weight is not None and norm.weight.dtype == torch.float32
    if type(gate) is AGMM:
        known &= gate.kind == "agmm" and gate.alpha.shape[0] == steps
    else:
        known &= type(gate) in (Halve, nn.Identity)
    return known and (neuron is None or knows_neuron(neuron)) and not watched(norm) and not watched(gate)


def knows_neuron(neuron: nn.Module) -> bool:
    """As `knows`, of the neuron alone."""
    return type(neuron) in (LIF, IF) and not watched(neuron, but_forward=True)


def watched(module: nn.Module, *, but_forward: bool = False) -> bool:
    """Whether the module has hooks of its own, which see only calls of it; but those that can be `shown` a result."""
    others = (module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(others) or bool(module._forward_hooks_with_kwargs if but_forward else module._forward_hooks)


def shown(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
    """`output`, once the module's forward hooks have seen it as if the module had computed it; they may replace it."""
    for hook in tuple(module._forward_hooks.values()):
        other = hook(module, (given,), output)
        output = output if other is None else other
    return output


def _kind(gate: nn.Module) -> str:
    if isinstance(gate, AGMM):
        return gate.scope
    return "constant" if isinstance(gate, Halve) else "none"


def constants(neuron: nn.Module) -> tuple[float, float, float, bool, bool]:
    """Of a neuron that `knows_neuron`, as the operators take them."""
    assert isinstance(neuron, LIF)
    leak, threshold = float(neuron.leak), float(neuron.threshold)
    return leak, threshold, float(neuron.surrogate_width), neuron.detach_reset, neuron.reset == "hard"


def _group(norm: nn.Module) -> str:
    """The name of the process group that a norm's statistics are of, empty for this process alone."""
    distributed = torch.distributed
    if not isinstance(norm, nn.SyncBatchNorm) or not distributed.is_initialized():
        return ""
    group: Any = norm.process_group or distributed.group.WORLD
    return group.group_name if distributed.get_world_size(group) > 1 else ""
