"""Random cases for the fused operation. Axes: T time steps, B batch, C channels, H, W."""

import torch

from agmm.models.blocks import BatchNorm2d
from agmm.modulation import make_gate
from agmm.neuron import IF, LIF

GATES = (("none", "sample"), ("constant", "sample"), ("agmm", "sample"), ("agmm", "channel"))


class Draw:
    """Choices from one generator."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def below(self, n):
        return int(torch.randint(n, (), generator=self.generator))

    def of(self, values):
        return values[self.below(len(values))]

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def tensor(self, shape, channels_last):
        """Values `[T, B, C, H, W]`: small integers times a scale, as a binary convolution gives, or any."""
        x = torch.randint(-9, 10, shape, generator=self.generator) * 0.13 if self.below(2) else self.normal(*shape)
        if channels_last:
            x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
        return x


def draw_case(seed):
    """(inputs, modules) as `agmm.kernels.check.compare` takes them."""
    draw = Draw(seed)
    sides = (1, 2, 3, 4, 5, 7, 17) if draw.below(20) else (33,)
    shape = (1 + draw.below(8), 1 + draw.below(3), draw.of((1, 2, 3, 5, 16, 19)), draw.of(sides), draw.of(sides))
    if draw.below(40) == 0:
        shape = (*shape[:2], draw.of((64, 65, 130)), *shape[3:])
    last = bool(draw.below(2))
    modules = (draw_norm(draw, shape[2]), draw_gate(draw, shape[0]), draw_neuron(draw))
    modules[0].train(shape[0] * shape[1] * shape[3] * shape[4] > 4 and draw.below(5) > 0)
    n, grad_x, grad_spikes = (draw.tensor(shape, last) for _ in range(3))
    r = draw.of((None, draw.tensor(shape, last), draw.tensor(shape, not last), draw.tensor((1, *shape[1:]), last)))
    if r is not None:
        r = r.expand(shape)
    given = draw.of(((grad_x, grad_spikes), (None, grad_spikes), (grad_x, None)))
    unit = draw.of((None, 1 + 0.3 * draw.normal(shape[2]).abs()))
    return [n + draw.of((0, 0, 2.5)), r, *given, unit], modules


@torch.no_grad()
def draw_norm(draw, channels):
    norm = BatchNorm2d(channels)
    norm.momentum = draw.of((0.1, 0.3, None))
    norm.weight.copy_(1 + 0.3 * draw.normal(channels))
    norm.bias.copy_(0.5 * draw.normal(channels))
    norm.running_mean.copy_(0.3 * draw.normal(channels))
    return norm


@torch.no_grad()
def draw_gate(draw, steps):
    gate = make_gate(*draw.of(GATES), steps)
    for alpha in gate.parameters():
        alpha.copy_(1 + draw.normal(steps))
    return gate


def draw_neuron(draw):
    kind = draw.of((LIF, LIF, IF))
    leak, threshold, width = draw.of((0.0, 0.25, 0.5, 0.9)), draw.of((0.5, 1.0, 1.3)), draw.of((0.5, 1.0, 2.0))
    return kind(leak, threshold, width, bool(draw.below(2)), draw.of(("hard", "soft")))
