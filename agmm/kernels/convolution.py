"""A binary convolution of spikes while training: bits forward, floats backward.

Forward it is the packed networks' kernel, which is exact, and gives integers; what autograd keeps of the spikes are
their bits, a 32nd of them. Backward torch's own convolution gives the gradient of spikes, in bfloat16 under autocast,
and that of weights where it is not faster to sum over spikes.

Axes: N images (T * B), I input and O output channels, H, W; words are of 64 channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agmm.binary import BinaryConv2d, channel_scale, hard_sign, latent_ste
from agmm.kernels import events
from agmm.kernels.check import TOLERANCE, deviation, verdict
from agmm.kernels.compiled import shown, watched
from agmm.kernels.counted import Counted, edge
from agmm.packed import native
from agmm.precision import at_least_float32

_ONES = [1, 1]


def count(conv: nn.Module, spikes_NIHW: Tensor) -> Counted:
    """`conv(spikes)`, 0 and 1.

    By bits where `conv` is a binary convolution that the kernels know. Its scale is the unit where it is a constant, so
    that who takes the result can multiply by it on the way.
    """
    if not _is_plain(conv):
        return Counted(conv(spikes_NIHW))
    if takes(spikes_NIHW, conv.weight, conv.stride[0]) and agrees():
        weights, scale = _latent(conv)
        found = convolve(spikes_NIHW, weights, conv.stride[0])
    else:
        weights, scale = conv.binarise()
        found = Counted(_reference(spikes_NIHW, weights, conv.stride[0]))
    found = replace(found, unit=scale.flatten())
    if not scale.requires_grad and not conv._forward_hooks:
        return found
    values = found.floats()
    seen = shown(conv, spikes_NIHW, values)
    as_counted = found.sums is not None and seen is values and not scale.requires_grad
    return replace(found, n=seen, in_units=True) if as_counted else Counted(seen)


def _latent(conv: BinaryConv2d) -> tuple[Tensor, Tensor]:
    """As `binarise`, but for weights whose signs act, where the method's are those of its latent weights."""
    if type(conv).binarise is not BinaryConv2d.binarise:
        return conv.binarise()
    scale = channel_scale(conv.weight.detach())
    return latent_ste(conv.weight, scale, clip=conv.clip), scale


def _is_plain(conv: nn.Module) -> TypeGuard[BinaryConv2d]:
    if not isinstance(conv, BinaryConv2d) or type(conv).forward is not BinaryConv2d.forward:
        return False
    return not watched(conv, but_forward=True) and conv.padding == (1, 1) and conv.stride[0] == conv.stride[1]


def _reference(x: Tensor, signs: Tensor, stride: int) -> Tensor:
    return at_least_float32(F.conv2d(x, signs, stride=stride, padding=1))


@torch.compiler.assume_constant_result
def agrees() -> bool:
    """Whether the kernels are there and agree with torch's convolution on this machine; see `check.verdict`."""
    return not native.why_not() and verdict(f"kernels of binary convolutions ({native.path()})", difference)


def difference() -> str:
    """Where the kernels differ from torch's convolution, in words; empty where they agree."""
    for ins, outs, stride in ((64, 32, 1), (130, 17, 2), (3, 16, 1)):
        x = (torch.rand(3, ins, 9, 7) < 0.3).float().requires_grad_()
        signs = torch.where(torch.rand(outs, ins, 3, 3) < 0.5, -1.0, 1.0).requires_grad_()
        ours, truth = (function(x, signs, stride) for function in (spike_convolution, _reference))
        if not torch.equal(ours, truth):
            return f"sums differ ({ins} channels, stride {stride})"
        grad = torch.randn(truth.shape)
        pairs = zip(*(torch.autograd.grad(each, (x, signs), grad) for each in (ours, truth)), strict=True)
        if any(deviation(found, wanted) > TOLERANCE for found, wanted in pairs):
            return f"gradients differ ({ins} channels, stride {stride})"
    return ""


def takes(x: Tensor, weights: Tensor, stride: int) -> bool:
    """Whether the kernels take spikes `[N, I, H, W]` and weights `[O, I, 3, 3]`, padded by 1."""
    return (
        x.device.type == "cpu"
        and x.dtype == weights.dtype == torch.float32
        and x.ndim == weights.ndim == 4
        and x.numel() > 0
        and tuple(weights.shape[1:]) == (x.shape[1], 3, 3)
        and native.fits(x.shape[1], stride, max(x.shape))
    )


def spike_convolution(x: Tensor, weights: Tensor, stride: int = 1) -> Tensor:
    """`convolve` to floats."""
    return convolve(x, weights, stride).floats()


def convolve(x: Tensor, weights: Tensor, stride: int = 1) -> Counted:
    """Spikes `[N, I, H, W]`, 0 and 1, by the signs of `[O, I, 3, 3]`, +1 for zeros, padded by 1: `[N, O, H', W']`.

    The result is channels last; the gradient of the weights is that of their signs. For what `takes`. Raises ValueError
    for other values than 0 and 1.
    """
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    events.agrees()  # compares once, which the backward pass is no place for
    n, sums, bits = _convolve(x, weights, stride, half)
    return Counted(n, sums, source=(bits, weights.detach(), stride))


@torch.library.custom_op("agmm::spike_convolution", mutates_args=(), device_types="cpu")
def _convolve(x: Tensor, weights: Tensor, stride: int, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The edge, the sums as int16, and the spikes as bits with their border, int64 `[N, H + 2, W + 2, words]`.

    `half`: of gradients.
    """
    bits = events.pack(x)
    sums = convolve_bits(bits, weights, stride)
    return edge(sums, _kind(half)), sums, bits


@_convolve.register_fake
def _(x: Tensor, weights: Tensor, stride: int, half: bool) -> tuple[Tensor, Tensor, Tensor]:
    sums = _result(x.new_empty(events.bits_shape(x), dtype=torch.int64), weights, stride)
    return edge(sums, _kind(half)), sums, x.new_empty(events.bits_shape(x), dtype=torch.int64)


def convolve_bits(bits: Tensor, weights: Tensor, stride: int) -> Tensor:
    """Packed spikes by the signs of weights, int16 `[N, O, H', W']`."""
    sums, weights_O33I = _result(bits, weights, stride), weights.permute(0, 2, 3, 1).contiguous()
    given = bits.numpy(), weights_O33I.numpy(), stride, sums.permute(0, 2, 3, 1).numpy()
    native.convolve_spikes(*given, threads=torch.get_num_threads())
    return sums


def _kind(half: bool) -> torch.dtype:
    return torch.bfloat16 if half else torch.float32


def _result(bits: Tensor, weights: Tensor, stride: int) -> Tensor:
    images, rows, columns, _ = bits.shape
    sides = [-(-(side - 2) // stride) for side in (rows, columns)]
    return bits.new_empty((images, *sides, len(weights)), dtype=torch.int16).permute(0, 3, 1, 2)


@torch.library.custom_op("agmm::spike_convolution_backward", mutates_args=(), device_types="cpu")
def _gradients(
    grad: Tensor, bits: Tensor, weights: Tensor, stride: int, half: bool, of_spikes: bool, of_signs: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of spikes and of the weights' signs; empty where they are not asked for."""
    # of maps one pixel wide oneDNN's gradient of weights in bfloat16 holds memory that nobody wrote (torch 2.13)
    kind, channels = _kind(half and not (stride == 2 and bits.shape[2] == 1 + 2)), weights.shape[1]
    grad, signs = (each.to(kind, memory_format=torch.channels_last) for each in (grad, hard_sign(weights)))
    summed = of_signs and stride == 1 and events.agrees() and events.pays(bits, channels, kind)
    dsigns = events.weight_gradient(bits, grad, channels) if summed else None
    mask = [of_spikes, of_signs and not summed, False]
    # for the gradient of spikes alone, the spikes' shape will do
    x = _unpacked(bits, channels, kind) if mask[1] else _blank(bits, channels, kind)
    strides = [stride, stride]
    dx, by_torch, _ = torch.ops.aten.convolution_backward(
        grad, x, signs, None, strides, _ONES, _ONES, False, [0, 0], 1, mask
    )
    return _or_empty(dx, grad), _or_empty(dsigns if summed else by_torch, grad)


@_gradients.register_fake
def _(grad: Tensor, bits: Tensor, weights: Tensor, *asked: Any) -> tuple[Tensor, Tensor]:
    *_, of_spikes, of_signs = asked
    images, rows, columns, _ = bits.shape
    shape = (images, rows - 2, columns - 2, weights.shape[1])
    x, empty = (grad.new_empty(size, dtype=torch.float32) for size in (shape, 0))
    x = x.permute(0, 3, 1, 2)
    dsigns = torch.empty_like(weights, memory_format=torch.channels_last) if of_signs else empty
    return x if of_spikes else empty.clone(), dsigns


def _blank(bits: Tensor, channels: int, kind: torch.dtype) -> Tensor:
    """Room for the spikes, channels last."""
    images, rows, columns, _ = bits.shape
    return torch.empty(images, rows - 2, columns - 2, channels, dtype=kind).permute(0, 3, 1, 2)


def _unpacked(bits: Tensor, channels: int, kind: torch.dtype) -> Tensor:
    x = _blank(bits, channels, kind)
    known_NHWI = (x.view(torch.int16) if kind == torch.bfloat16 else x).permute(0, 2, 3, 1)
    native.unpack_spikes(bits.numpy(), known_NHWI.numpy(), threads=torch.get_num_threads())
    return x


def _or_empty(grad: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.float32) if grad is None else grad.float()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, weights, ctx.stride, ctx.half = inputs
    _, sums, bits = output
    ctx.mark_non_differentiable(sums, bits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(bits, weights)


def _back(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    of_spikes, of_signs = ctx.needs_input_grad[:2]
    if grad is None:
        return None, None, None, None
    dx, dsigns = _gradients(grad, *ctx.saved_tensors, ctx.stride, ctx.half, of_spikes, of_signs)
    return dx if of_spikes else None, dsigns if of_signs else None, None, None


_convolve.register_autograd(_back, setup_context=_keep)
