"""Integrate-and-fire neurons (Eq. 1-4) and their surrogate gradient (Eq. 7).

Axes: T time steps, then any shape. State lives within one forward pass and never enters a `state_dict`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from agmm.precision import at_least_float32

RESETS = ("hard", "soft")


class _TriangleSpike(torch.autograd.Function):
    """s = 1[u >= threshold];  ds/du := max(0, width - |u - threshold|) / width**2.  Eq. 3 and 7."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, threshold: float, width: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.threshold, ctx.width = threshold, width
        return (u >= threshold).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        slope = (ctx.width - (u - ctx.threshold).abs()).clamp_min(0) / ctx.width**2
        return grad * slope, None, None


def triangle_spike(u: Tensor, *, threshold: float, width: float) -> Tensor:
    """Spikes (0 or 1, shaped and typed like the membrane `u`) with a triangular surrogate gradient (Eq. 3, 7)."""
    return _TriangleSpike.apply(u, threshold, width)


def lif_step(
    v: Tensor,
    x: Tensor,
    *,
    leak: float | Tensor,
    threshold: float,
    width: float,
    detach_reset: bool = False,
    reset: str = "hard",
) -> tuple[Tensor, Tensor]:
    """Leak, integrate, fire, reset (Eq. 1, 3, 4). Returns (spike, next membrane), both shaped like `x`.

    A hard reset puts a membrane that fired to zero, a soft one takes the threshold off and keeps the rest.
    """
    u = leak * v + x
    spike = triangle_spike(u, threshold=threshold, width=width)
    fired = spike.detach() if detach_reset else spike
    return spike, u * (1 - fired) if reset == "hard" else u - threshold * fired


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire neurons, scanned over time.

    Args:
        leak: share of the membrane that is kept from one step to the next, 0 to 1 (tau of Eq. 1).
        threshold: membrane value at which a neuron fires, above 0 (V_th of Eq. 3).
        surrogate_width: half width of the triangular surrogate, above 0 (gamma of Eq. 7).
        detach_reset: stop the gradient through the reset (Eq. 4). The authors let it flow.
        reset: `hard`, to zero (Eq. 4), or `soft`, by the threshold.

    Raises:
        ValueError: for a parameter outside its range.

    """

    leak: float | Tensor

    def __init__(
        self,
        leak: float = 0.5,
        threshold: float = 1.0,
        surrogate_width: float = 1.0,
        detach_reset: bool = False,
        reset: str = "hard",
    ) -> None:
        super().__init__()
        if not 0 <= leak <= 1:
            raise ValueError(f"leak must be within 0 and 1, got {leak}. Set model.neuron.leak.")
        if threshold <= 0 or surrogate_width <= 0:
            raise ValueError(f"threshold and surrogate_width must be above 0, got {threshold} and {surrogate_width}.")
        if reset not in RESETS:
            raise ValueError(f"Unknown reset {reset!r}. Known: {', '.join(RESETS)}. Set model.neuron.reset.")
        self._set_leak(leak)
        self.threshold, self.surrogate_width = threshold, surrogate_width
        self.detach_reset, self.reset = detach_reset, reset

    def _set_leak(self, leak: float) -> None:
        self.leak = leak

    def forward(self, x_T: Tensor) -> Tensor:
        """Input current `[T, ...]` to spikes of the same shape, in float32 where the input is of a lower precision."""
        x_T = at_least_float32(x_T)
        v, spikes = torch.zeros_like(x_T[0]), []
        for x in x_T.unbind(0):
            spike, v = self.step(v, x)
            spikes.append(spike)
        return torch.stack(spikes)

    def step(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: membrane and input current, alike in shape, to (spike, next membrane)."""
        return lif_step(
            v,
            x,
            leak=self.leak,
            threshold=self.threshold,
            width=self.surrogate_width,
            detach_reset=self.detach_reset,
            reset=self.reset,
        )

    def extra_repr(self) -> str:
        leak = float(self.leak)
        return (
            f"leak={leak:.4g}, threshold={float(self.threshold):.4g}, surrogate_width={self.surrogate_width}, "
            f"detach_reset={self.detach_reset}, reset={self.reset}"
        )


class IF(LIF):
    """Integrate-and-fire: `LIF` that keeps its whole membrane, whatever `leak` says."""

    def _set_leak(self, _: float) -> None:
        self.leak = 1.0


class PLIF(LIF):
    """`LIF` with a leak that is learned: sigmoid(w), one w for the layer.

    After Fang et al. 2021 (arXiv 2007.05785), where the learned share also scales the input; here it does not (Eq. 1).
    `leak` is the initial value, within 0 and 1 but neither: there the sigmoid would have no gradient.
    """

    def _set_leak(self, leak: float) -> None:
        if not 0 < leak < 1:
            raise ValueError(f"A learned leak starts between 0 and 1, neither included; got {leak}.")
        self.leak_logit = nn.Parameter(torch.tensor(math.log(leak / (1 - leak))))

    @property
    def leak(self) -> Tensor:  # type: ignore[override]
        """The leak as it is now, a scalar."""
        return torch.sigmoid(self.leak_logit)


class Rectify(nn.Module):
    """max(0, x) in a neuron's place: the analogue network that a rate-coded one is converted from.

    It takes and ignores a neuron's parameters, so that either can be chosen by name.
    """

    def __init__(self, **_: float | bool | str) -> None:
        super().__init__()

    def forward(self, x_T: Tensor) -> Tensor:
        return at_least_float32(x_T).relu()


class RateIF(IF):
    """`IF` with soft reset in place of a `Rectify` of activations up to `level`: its mean output over T tends to them.

    Threshold and spike amplitude are `level`, a buffer that `agmm.conversion` calibrates; the amplitude is one constant
    of the layer, which the next layer's scale absorbs. The membrane starts at half the threshold, which halves the
    expected error at few steps (Bu et al. 2022, arXiv 2303.04347). Not trained: it has no surrogate.
    """

    level: Tensor

    def __init__(self, **_: float | bool | str) -> None:
        super().__init__(reset="soft")
        self.register_buffer("level", torch.ones(()))

    def forward(self, x_T: Tensor) -> Tensor:
        x_T = at_least_float32(x_T)
        v, outputs = torch.full_like(x_T[0], 0.5) * self.level, []
        for x in x_T.unbind(0):
            output = (v + x >= self.level) * self.level
            v = v + x - output
            outputs.append(output)
        return torch.stack(outputs)

    def extra_repr(self) -> str:
        return f"level={float(self.level):.4g}"


NEURONS: dict[str, type[nn.Module]] = {"lif": LIF, "if": IF, "plif": PLIF, "relu": Rectify, "rate_if": RateIF}


def make_neuron(kind: str, **parameters: float | bool | str) -> nn.Module:
    """A layer of the neurons named `kind`, with `LIF`'s parameters. Raises ValueError for an unknown kind."""
    if kind not in NEURONS:
        raise ValueError(f"Unknown neuron {kind!r}. Known: {', '.join(NEURONS)}. Set model.neuron.kind.")
    return NEURONS[kind](**parameters)
