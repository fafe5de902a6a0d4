"""Values and gradients of all that is trained, in float64 against autograd of the formulas, 1,000 random cases each.

The formulas are written here anew. A surrogate enters as the smooth function whose derivative it is.
"""

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agmm.binary import BinaryConv2d, RealConv2d, sign_ste
from agmm.methods import METHODS
from agmm.models.blocks import NORMS, BlockSpec, FeedForwardBlock, SpikingBlock, TemporalBatchNorm2d
from agmm.modulation import KINDS, SCOPES, Halve, make_gate
from agmm.neuron import IF, PLIF, RESETS, Rectify, make_neuron
from agmm.related import LearnedScaleConv2d, QSNNConv2d, ReCUConv2d, XnorConv2d, sign_ede

CASES = range(1000)
TOLERANCE = 1e-5  # norm of the error, of the norm of the reference
FLOOR = 1e-3  # ... or of this: a gradient that cancels to nothing has no relative error


class _Draw:
    """What a case is made of: a function of its number."""

    def __init__(self, case):
        self.random = random.Random(case)
        self.generator = torch.Generator().manual_seed(case)
        self.pick, self.uniform = self.random.choice, self.random.uniform

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def sizes(self, count):
        return [self.random.randint(1, 4) for _ in range(count)]

    def module(self, module):
        """In float64, with random parameters and statistics, in training or evaluation mode."""
        module = module.double().train(self.pick([True, False]))
        with torch.no_grad():
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2, generator=self.generator)
                elif name.endswith("progress"):
                    tensor.uniform_(0, 1, generator=self.generator)
                elif tensor.is_floating_point():
                    tensor.normal_(0, 0.8, generator=self.generator)  # weights on both sides of the clip at 1
        return module


def _assert_agree(ours, theirs, inputs, draw, case):
    """Values, and the gradients of all inputs for the same random upstream gradient."""
    upstream = draw.normal(*theirs.shape)
    mine, its = (
        [y.detach(), *torch.autograd.grad(y, inputs, upstream, materialize_grads=True)] for y in (ours, theirs)
    )
    errors = [float((a - b).norm() / max(b.norm(), FLOOR)) for a, b in zip(mine, its, strict=True)]
    assert max(errors) <= TOLERANCE, f"case {case}: relative errors of the value and of {len(inputs)} inputs: {errors}"


def _assert_module_agrees(module, reference, x, draw, case):
    x.requires_grad_()
    _assert_agree(module(x), reference(module, x), [x, *module.parameters()], draw, case)


def _with_slope_of(value, smooth):
    """`value`, with the gradient of `smooth`."""
    return value.detach() + (smooth - smooth.detach())


def _neuron(neuron, x_T):
    """Eq. 1, 3, 4; the spike has the slope of the integral of Eq. 7's triangle."""
    if isinstance(neuron, Rectify):
        return x_T.clamp_min(0)
    leak = 1 / (1 + torch.exp(-neuron.leak_logit)) if isinstance(neuron, PLIF) else neuron.leak
    assert not isinstance(neuron, IF) or leak == 1
    v, spikes = 0.0, []
    for x in x_T:
        u = leak * v + x
        d = ((u - neuron.threshold) / neuron.surrogate_width).clamp(-1, 1)
        spikes.append(_with_slope_of((u >= neuron.threshold).double(), d - 0.5 * d * d.abs()))
        fired = spikes[-1].detach() if neuron.detach_reset else spikes[-1]
        v = u - fired * (u if neuron.reset == "hard" else neuron.threshold)
    return torch.stack(spikes)


def _sign(w):
    return (w >= 0).double() * 2 - 1


def _mean_magnitude(w):
    return w.abs().mean((1, 2, 3), keepdim=True)


def _standardised(w):
    centred = w - w.mean((1, 2, 3), keepdim=True)
    return centred / (centred.square().sum((1, 2, 3), keepdim=True) / (w[0].numel() - 1)).sqrt()


def _binary(conv):
    w = conv.weight
    return _with_slope_of(_mean_magnitude(w) * _sign(w), w.clamp(-1, 1) if conv.clip else w)


def _xnor(conv):
    w = conv.weight
    return _mean_magnitude(w) * _with_slope_of(_sign(w), w.clamp(-1, 1) if conv.clip else w)


def _learned_scale(conv):
    return conv.scale.view(-1, 1, 1, 1) * _with_slope_of(_sign(conv.weight), conv.weight.clamp(-1, 1))


def _q_snn(conv):
    w, t = _standardised(conv.weight), 10 ** (2 * float(conv.progress) - 1)
    power = 2 ** _mean_magnitude(w).log2().round().detach()
    return power * _with_slope_of(_sign(w), max(1 / t, 1) * torch.tanh(t * w))


def _recu(conv):
    w, tau = _standardised(conv.weight), 0.85 + 0.14 * math.expm1(float(conv.progress)) / math.expm1(1)
    limit = -float(w.detach().abs().mean()) * math.log(2 - 2 * tau)
    w = w.clamp(-limit, limit)
    return _mean_magnitude(w).detach() * _with_slope_of(_sign(w), w)


WEIGHTS = {
    RealConv2d: lambda conv: conv.weight,
    BinaryConv2d: _binary,
    XnorConv2d: _xnor,
    LearnedScaleConv2d: _learned_scale,
    QSNNConv2d: _q_snn,
    ReCUConv2d: _recu,
}


def _conv(conv, x):
    return F.conv2d(x, WEIGHTS[type(conv)](conv), stride=conv.stride, padding=conv.padding)


def _gate(gate, x_TBCHW):
    """Eq. 11, 12 and the controls."""
    if isinstance(gate, nn.Identity | Halve):
        return x_TBCHW / 2 if isinstance(gate, Halve) else x_TBCHW
    axes = (2, 3, 4) if gate.scope == "sample" else (3, 4)

    def gated(x):
        return x / (1 + torch.exp(-gate.alpha.view(-1, 1, 1, 1, 1) * x.mean(axes, keepdim=True)))

    if gate.kind == "forward_only":
        return _with_slope_of(gated(x_TBCHW), x_TBCHW + gated(x_TBCHW.detach()))
    return _with_slope_of(x_TBCHW, gated(x_TBCHW)) if gate.kind == "backward_only" else gated(x_TBCHW)


def _norm(norm, x_TBCHW):
    mean, var = norm.running_mean.view(-1, 1, 1), norm.running_var.view(-1, 1, 1)
    if norm.training:
        mean = x_TBCHW.mean((0, 1, 3, 4), keepdim=True)
        var = (x_TBCHW - mean).square().mean((0, 1, 3, 4), keepdim=True)
    y = (x_TBCHW - mean) / (var + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    return y * norm.factor.view(-1, 1, 1, 1, 1) if isinstance(norm, TemporalBatchNorm2d) else y


def _current(block, x_TBCHW):
    """Convolution, norm, gate."""
    y = _conv(block.conv, x_TBCHW.flatten(0, 1)).unflatten(0, x_TBCHW.shape[:2])
    return _gate(block.gate, _norm(block.norm, y))


def _shortcut(shortcut, x_TBCHW):
    """The mean of what is there of each 2 x 2 window, 1x1 convolution, norm; or the identity."""
    if isinstance(shortcut, nn.Identity):
        return x_TBCHW
    pool, conv, norm = shortcut
    if isinstance(pool, nn.AvgPool2d):
        height, width = x_TBCHW.shape[-2:]
        windows = [x_TBCHW[..., i : i + 2, j : j + 2] for i in range(0, height, 2) for j in range(0, width, 2)]
        x_TBCHW = torch.stack([w.mean((3, 4)) for w in windows], -1).unflatten(-1, (-(-height // 2), -(-width // 2)))
    return _norm(norm, torch.einsum("tbchw,oc->tbohw", x_TBCHW, conv.weight[:, :, 0, 0]))


def _spiking_block(block, x_TBCHW):
    return _current(block, _neuron(block.neuron, x_TBCHW)) + _shortcut(block.shortcut, x_TBCHW)


def _feed_forward_block(block, x_TBCHW):
    return _neuron(block.neuron, _current(block, x_TBCHW))


def _neuron_options(draw):
    return {
        "leak": draw.uniform(0.05, 0.95),
        "threshold": draw.uniform(0.3, 1.5),
        "surrogate_width": draw.uniform(0.5, 2),
        "detach_reset": draw.pick([True, False]),
        "reset": draw.pick(RESETS),
    }


def _spec(draw):
    return BlockSpec(
        num_steps=draw.pick([1, 2, 3]),
        method=draw.pick(["agmm", *METHODS]),
        gate_kind=draw.pick(KINDS),
        gate_scope=draw.pick(SCOPES),
        norm=draw.pick(NORMS),
        neuron=draw.pick(["lif", "if", "plif", "relu"]),
        **_neuron_options(draw),
    )


@pytest.mark.parametrize("kind", ["lif", "if", "plif"])
def test_neurons(kind):
    for case in CASES:
        draw = _Draw(case)
        neuron = make_neuron(kind, **_neuron_options(draw)).double()
        _assert_module_agrees(neuron, _neuron, 1.5 * draw.normal(*draw.sizes(3)), draw, case)


def test_sign_with_straight_through_gradient():
    """d(scale * b)/dw is 1, within the clip if there is one."""
    for case in CASES:
        draw = _Draw(case)
        w, clip, scale = draw.normal(*draw.sizes(4)).requires_grad_(), draw.pick([True, False]), draw.uniform(0.1, 3)
        ours = scale * sign_ste(w, scale, clip=clip)
        _assert_agree(ours, _with_slope_of(scale * _sign(w), w.clamp(-1, 1) if clip else w), [w], draw, case)


def test_sign_with_error_decay():
    for case in CASES:
        draw = _Draw(case)
        w, t = draw.normal(*draw.sizes(4)).requires_grad_(), 10 ** draw.uniform(-1, 1)
        ours = sign_ede(w, torch.tensor(t, dtype=torch.float64))
        _assert_agree(ours, _with_slope_of(_sign(w), max(1 / t, 1) * torch.tanh(t * w)), [w], draw, case)


@pytest.mark.parametrize("kind", [kind for kind in WEIGHTS if kind is not RealConv2d])
def test_binary_convolutions(kind):
    for case in CASES:
        draw = _Draw(case)
        batch, inputs, outputs, height, width = draw.sizes(5)
        conv = draw.module(kind(inputs, outputs, 3, stride=draw.pick([1, 2]), padding=1))
        conv.clip = draw.pick([True, False]) if kind in (BinaryConv2d, XnorConv2d) else conv.clip
        _assert_module_agrees(conv, _conv, draw.normal(batch, inputs, height, width), draw, case)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("kind", ["agmm", "forward_only", "backward_only"])
def test_gate(kind, scope):
    for case in CASES:
        draw = _Draw(case)
        x = draw.normal(*draw.sizes(5))
        _assert_module_agrees(draw.module(make_gate(kind, scope, x.shape[0])), _gate, x, draw, case)


def test_spiking_block():
    for case in CASES:
        draw = _Draw(case)
        spec, (inputs, outputs) = _spec(draw), draw.pick([(2, 2), (1, 3), (2, 2)])
        block = draw.module(SpikingBlock(inputs, outputs, draw.pick([1, 2]), spec))
        x = 1.5 * draw.normal(spec.num_steps, 2, inputs, draw.pick([3, 4]), draw.pick([3, 5]))
        _assert_module_agrees(block, _spiking_block, x, draw, case)


def test_feed_forward_block():
    for case in CASES:
        draw = _Draw(case)
        spec, (inputs, outputs) = _spec(draw), draw.sizes(2)
        block = draw.module(FeedForwardBlock(inputs, outputs, spec))
        x = draw.normal(spec.num_steps, 2, inputs, draw.pick([3, 4]), draw.pick([3, 5]))
        _assert_module_agrees(block, _feed_forward_block, x, draw, case)
