"""Adaptive gradient modulation (Eq. 11-16): a trainable gate behind each binary convolution, and its controls.

Axes: T time steps, B batch, C channels, H, W.
"""

import torch
from torch import Tensor, nn

KINDS = ("agmm", "constant", "forward_only", "backward_only", "none")
SCOPES = ("sample", "channel")


class AGMM(nn.Module):
    """Y[t] = sigmoid(alpha[t] * mean of X[t]) * X[t], with one trainable alpha per time step (Eq. 11, 12).

    Autograd keeps both terms of Eq. 13. The controls tell the gate's two effects apart, and both from a mere halving:

    - `agmm`: gates the value and the gradient.
    - `forward_only`: gates the value; the gradient passes as if there were no gate.
    - `backward_only`: the value passes; the gradient is that of the gated value.

    Args:
        num_steps: T, the number of alphas.
        kind: one of the three above.
        scope: `sample`: the mean runs over C, H, W, one gate per sample and step; `channel`: over H, W.

    Raises:
        ValueError: for an unknown kind or scope, and in `forward` for an input of another T.

    """

    def __init__(self, num_steps: int, kind: str = "agmm", scope: str = "sample") -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"Unknown gate scope {scope!r}. Known: {', '.join(SCOPES)}.")
        if kind not in ("agmm", "forward_only", "backward_only"):
            raise ValueError(f"Unknown gate kind {kind!r}. Known: {', '.join(KINDS)}; make_gate builds any of them.")
        self.kind, self.scope = kind, scope
        self.alpha = nn.Parameter(torch.ones(num_steps))

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        """Modulates `[T, B, C, H, W]`, keeping the shape."""
        if x_TBCHW.shape[0] != self.alpha.shape[0]:
            raise ValueError(
                f"The gate was built for {self.alpha.shape[0]} time steps and got {x_TBCHW.shape[0]}. "
                "Evaluate with the number of steps that the network was trained for."
            )
        if self.kind == "forward_only":
            fixed = x_TBCHW.detach()
            return x_TBCHW + (self._gate(fixed) - 1) * fixed
        gated = self._gate(x_TBCHW) * x_TBCHW
        return gated + (x_TBCHW - gated).detach() if self.kind == "backward_only" else gated

    def _gate(self, x_TBCHW: Tensor) -> Tensor:
        axes = (2, 3, 4) if self.scope == "sample" else (3, 4)
        return torch.sigmoid(self.alpha.view(-1, 1, 1, 1, 1) * x_TBCHW.mean(dim=axes, keepdim=True))

    def extra_repr(self) -> str:
        return f"num_steps={self.alpha.shape[0]}, kind={self.kind}, scope={self.scope}"


class Halve(nn.Module):
    """The constant gate, 0.5: what AGMM is at the start, and so the control for a smaller step."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def make_gate(kind: str, scope: str, num_steps: int) -> nn.Module:
    """The gate module for a kind of `KINDS`. Raises ValueError for an unknown kind or scope."""
    if kind == "none":
        return nn.Identity()
    return Halve() if kind == "constant" else AGMM(num_steps, kind, scope)
