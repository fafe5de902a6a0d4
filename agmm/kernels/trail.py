"""The stream of a network, told by how it came to be: what a block's end keeps in the place of it.

x is what a stage begins with, and a term for each of its blocks: gate * (scale * n + shift). The backward pass of a
block's end takes the terms up to its own and adds them on the way, in the order of the forward pass, so that not a bit
differs. Of a term are kept n, as 16-bit integers, or only the bits of the spikes that it is the convolution of.

Axes: T time steps, B batch, C channels, H, W.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from agmm.kernels import compiled, native, ops
from agmm.kernels.algebra import GATES, Gate, Norm
from agmm.kernels.convolution import convolve_bits
from agmm.kernels.counted import Counted
from agmm.kernels.native import Counts, Layout, Stream, Term
from agmm.kernels.passes import Constants, Wanted, backward
from agmm.kernels.replay import Lazy, again, replayed
from agmm.models.blocks import over_time

# Terms that are added on the way: from there on it begins with the sum of them, computed once.
_MOST_TERMS = 4
# Of a channel: its sum in float64 is then so little beside it that it is kept, and not taken again.
_MANY_PIXELS = 128


@dataclass(frozen=True)
class Joint:
    """A block's end that has run, and what its term and its gradients are computed from."""

    values: Lazy
    unit: Tensor | None
    norm: Norm
    alpha: Tensor | None
    gate: Tensor
    its: Constants
    wanted: Wanted
    known: Tensor | None

    def counts(self) -> Counts:
        """n."""
        values = self.values()
        return Counts(Layout.of(values).dense(values), self.unit)

    def term(self) -> Term:
        """What it adds to the stream."""
        counts = self.counts()
        gate = self.gate.expand(counts.values.shape[:3]).contiguous()
        return Term(counts, (*self.norm.affine(), gate))

    def sums(self, counts: Counts) -> Tensor:
        """Of n over H and W, where an adaptive gate asks for them."""
        layout = Layout.of(counts.values)
        if self.known is not None:
            return self.known
        return native.moments(layout, counts)[0] if GATES[self.its.gate] is None else layout.coefficients().zero_()


@dataclass(frozen=True)
class Trail:
    """A stream: what it begins with, and the joints passed since."""

    base: Lazy
    joints: tuple[Joint, ...] = ()

    def passing(self, joint: Joint) -> Trail:
        """The stream behind another joint."""
        if len(self.joints) == _MOST_TERMS:
            return Trail(Lazy(self.tensor), (joint,))
        return replace(self, joints=(*self.joints, joint))

    def stream(self) -> Stream:
        """As the passes take it."""
        terms = [joint.term() for joint in self.joints]
        return Stream(*Layout.of(terms[-1].n.values).repeated(self.base()), terms)

    @torch.no_grad()
    def tensor(self, *, for_long: bool = False) -> Tensor:
        """The stream itself; `for_long`: what was computed again for it is soon needed once more."""
        if not self.joints:
            return self.base()
        stream, neuron = self.stream(), self.joints[-1].its.neuron
        values = stream.terms[-1].n.values
        x = torch.empty_like(values, dtype=torch.float32)
        native.forward(Layout.of(values), neuron, stream, x, None)
        for joint in () if for_long else self.joints:
            joint.values.drop()
        return x


class Replaying:
    """How the blocks of a network are run where streams are not kept.

    Args:
        x: the stream before the first block, and `base` how to compute it again, or None.
        keeps: whether n is kept, and not computed again from bits.

    """

    def __init__(self, x: Tensor, base: Any, *, keeps: bool) -> None:
        self._trail = Trail(Lazy(base, users=2) if base else Lazy.of(x))
        self._keeps = keeps

    def spikes(self, x: Tensor, neuron: nn.Module) -> Tensor:
        """As `agmm.kernels.compiled.spikes`, of the stream before the first block."""
        fired: Tensor = _Spikes.apply(x, self._trail.base, compiled.constants(neuron))
        return compiled.shown(neuron, x, fired)

    def shortcut(self, module: nn.Module, x: Tensor) -> Tensor:
        """The stream that a block adds to."""
        if type(module) is nn.Identity:
            return x
        before, called, given = self._trail, list(module.modules()), [x]
        if any(map(compiled.watched, called)):  # whose hooks would see a replay
            r = over_time(module, x)
            self._trail = Trail(Lazy.of(r.detach()))
            return r

        def run() -> Tensor:
            own = given.pop() if given else before.tensor(for_long=True).requires_grad_()
            return over_time(module, own)

        r = replayed(run, modules=called)
        given.clear()
        self._trail = Trail(Lazy(again(lambda: over_time(module, before.tensor()), called)))
        return r

    def block_end(
        self, n: Counted, r: Tensor, norm: nn.Module, gate: nn.Module, neuron: nn.Module | None
    ) -> tuple[Tensor, Tensor]:
        """As `agmm.kernels.compiled.block_end`."""
        return compiled.block_end(n, r, norm, gate, neuron, self._run(n))

    def _run(self, n: Counted) -> Any:
        values = Lazy.of(n.n if n.sums is None else n.sums)
        if n.source is not None and not self._keeps:
            source, steps = n.source, len(n.n)  # not n, which holds the sums
            values = Lazy(lambda: convolve_bits(*source).unflatten(0, (steps, -1)))

        def run(*inputs: Any) -> Any:
            held = _Held(self._trail, values)
            outputs = _BlockEnd.apply(held, *inputs)
            assert held.after is not None
            self._trail = held.after
            return outputs

        return run


class _Held:
    """What goes beside the tensors into a `_BlockEnd`, and the trail behind it."""

    def __init__(self, before: Trail, values: Lazy) -> None:
        self.before, self.values = before, values
        self.after: Trail | None = None


class _BlockEnd(torch.autograd.Function):
    """`agmm.kernels.ops.block_end`, which keeps the way to its result."""

    @staticmethod
    def forward(ctx: Any, held: _Held, *inputs: Any) -> Any:
        n, _, unit, in_units, r, weight, bias, remembered, _, alpha, eps, gate, *rest = inputs
        outputs = ops.block_end(*inputs)
        x, _, mean, var, count, sums = outputs
        its = Constants(eps, gate, *rest)
        norm = Norm(weight, bias, mean, var, count if remembered is None else None, eps)
        gates = Gate(gate, alpha, x.shape[3] * x.shape[4]).forward(norm, sums)
        wanted = Wanted(n.dtype, None if in_units else unit, r is not None)
        gates = gates if gate == "channel" else gates[..., :1].clone()
        known = sums if x.shape[3] * x.shape[4] >= _MANY_PIXELS else None
        joint = Joint(held.values, unit, norm, alpha, gates, its, wanted, known)
        ctx.trail = held.after = held.before.passing(joint)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, var, count, sums)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if ctx.trail is None:
            raise RuntimeError("The graph was freed: a second backward pass needs retain_graph=True in the first.")
        if grads[0] is None and grads[1] is None:
            return (None,) * (1 + ops.INPUTS)
        trail: Trail = ctx.trail
        joint = trail.joints[-1]
        counts = joint.counts()
        stream = trail.stream() if grads[1] is not None else Stream(None)
        sums = joint.sums(counts)
        dn, g, found = backward(grads[:2], counts, stream, joint.norm, sums, joint.alpha, joint.its, joint.wanted)
        joint.values.drop()
        if len(trail.joints) == 1:
            trail.base.done()
        if not torch._C._autograd._get_current_graph_task_keep_graph():  # type: ignore[attr-defined]
            ctx.trail = None
        empty = g.new_empty(0)
        alpha = found.alpha if found.alpha is not None else empty
        return None, *ops.as_inputs(dn, g if joint.wanted.of_r else empty, found.weight, found.bias, alpha)


class _Spikes(torch.autograd.Function):
    """`agmm.kernels.ops.spikes`, which keeps how to compute the current again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Lazy, constants: tuple[Any, ...]) -> Tensor:
        ctx.base, ctx.constants = base, constants
        return ops.spikes(x, *constants)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        dx = ops.spikes_backward(grad, ctx.base(), *ctx.constants)
        ctx.base.done()
        return dx, None, None
