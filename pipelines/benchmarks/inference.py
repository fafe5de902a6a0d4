"""Packed networks against torch, side by side: each layer shape of a ResNet-18, and whole networks at batch 1.

See `race` for how. Peers get their best layout and no work that a deployment would not have: `channels_last`, with
signs, scales and norms in the convolutions' weights, which are cast before.
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

import agmm.models as models
from agmm.export.extras import Missing
from agmm.export.onnx import write_onnx
from agmm.packed import native
from agmm.packed.description import Input
from agmm.packed.frozen import SignConv2d, frozen
from agmm.packed.native import NativeNetwork
from agmm.packed.pack import About, pack
from agmm.packed.reference import pack_signs
from pipelines.benchmarks import circumstances, row
from pipelines.benchmarks.race import PEAK, Contender, machine, paired, peak, pinned, race
from pipelines.errors import UserError
from pipelines.progress import Progress

STEPS = 4
# Channels and side of the four stages of a ResNet-18 at 224 pixels.
LAYERS = ((64, 56), (128, 28), (256, 14), (512, 7))
# A share of neurons that fire, as trained networks have it here (0.1 to 0.4).
_FIRING = 0.25


@dataclass(frozen=True)
class Network:
    """What whole networks are measured: timm's name, T, pixels a side and classes."""

    arch: str
    steps: int
    side: int
    classes: int


NETWORKS = (Network("agmm_resnet18", 4, 224, 1000), Network("agmm_resnet19", 2, 32, 10))


@torch.inference_mode()
def bench(rounds: int, threads: int, *, layers: bool = True, networks: Sequence[Network] = NETWORKS) -> dict[str, Any]:
    """Rows of every comparison, the hardware and the versions. `ratio`: so many times as fast as the peer.

    Raises UserError where there are no native kernels, or not so many cores.
    """
    if why := native.why_not():
        raise UserError(f"There are no native kernels to measure: {why}.")
    shapes, rows = LAYERS if layers else (), list[dict[str, Any]]()
    with pinned(threads), Progress(rounds * (len(shapes) + len(networks)), "measure", "round") as progress:
        for shape in shapes:
            name, macs, contenders = _layer(*shape, threads)
            race(contenders, rounds, progress)
            rows += _layer_rows(name, macs, contenders)
        for network in networks:
            contenders, memory = _network(network, threads)
            race(contenders, rounds, progress)
            rows += _network_rows(network, contenders, memory)
    return {"rows": rows, **circumstances(), "threads": threads, "rounds": rounds, **machine()}


def _layer(channels: int, side: int, threads: int) -> tuple[str, float, list[Contender]]:
    """A binary 3x3 convolution of T frames of spikes, `channels` to `channels`; ours from bytes, which it packs."""
    generator = torch.Generator().manual_seed(channels)
    spikes = (torch.rand(STEPS, channels, side, side, generator=generator) < _FIRING).float()
    signs = torch.where(torch.rand(channels, channels, 3, 3, generator=generator) < 0.5, -1.0, 1.0)
    ours_NHWC = np.ascontiguousarray(spikes.permute(0, 2, 3, 1).numpy().astype(np.uint8))
    convolution = native.BinaryConvolution(pack_signs(signs.permute(0, 2, 3, 1).numpy()), channels, threads=threads)
    contenders = [
        Contender("packed", lambda: convolution(ours_NHWC)),
        Contender("float32", _torch_convolution(spikes, signs, torch.float32)),
        Contender("bfloat16", _torch_convolution(spikes, signs, torch.bfloat16)),
        Contender("int8", _int8_convolution(spikes, signs)),
        peak(),
    ]
    return f"{channels} channels, {side} x {side}, T = {STEPS}", STEPS * side**2 * channels**2 * 9, contenders


def _torch_convolution(spikes: Tensor, signs: Tensor, kind: torch.dtype) -> Callable[[], object]:
    x, w = (each.to(kind).contiguous(memory_format=torch.channels_last) for each in (spikes, signs))
    return lambda: F.conv2d(x, w, padding=1)


def _int8_convolution(spikes: Tensor, signs: Tensor) -> Callable[[], object]:
    """Spikes and signs are small integers: torch's quantised convolution has them exactly."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)  # torch 2.13 has no other yet
        x, w = (
            torch.quantize_per_tensor(each.contiguous(memory_format=torch.channels_last), 1.0, 0, kind)
            for each, kind in ((spikes, torch.quint8), (signs, torch.qint8))
        )
    ones = [1, 1]
    packed = torch.ops.quantized.conv2d_prepack(w, None, ones, ones, ones, 1)
    return lambda: torch.ops.quantized.conv2d(x, packed, 16.0, 128)


def _layer_rows(name: str, macs: float, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    return [
        paired(
            f"{name}: packed by {peer.name}", contenders[0], peer, "GMAC/s", macs / 1e9, peer.work_done or macs / 1e9
        )
        for peer in contenders[1:]
    ]


def _network(chosen: Network, threads: int) -> tuple[list[Contender], dict[str, float]]:
    """The packed network and the trained graph it stands for, on one image."""
    torch.manual_seed(0)
    network = models.create_model(chosen.arch, num_classes=chosen.classes, num_steps=chosen.steps).eval()
    _as_if_trained(network)
    norm = (0.5, 0.5, 0.5)
    taken = Input(channels=3, height=chosen.side, width=chosen.side, mean=norm, std=norm)
    about = About(chosen.arch, chosen.arch, taken)
    packed = pack(network, about)
    image = torch.randn(1, 3, chosen.side, chosen.side)
    ours = NativeNetwork(packed.description, packed.tensors, threads=threads)
    image_BHWC = np.ascontiguousarray(image.permute(0, 2, 3, 1).numpy())
    plain, half = _deployed(network, torch.float32), _deployed(network, torch.bfloat16)
    last = image.contiguous(memory_format=torch.channels_last)

    def bfloat16() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return half(last)

    contenders = [
        Contender("packed", lambda: ours.run(image_BHWC)),
        Contender("float32", lambda: plain(last)),
        Contender("bfloat16", bfloat16),
        *_onnxruntime(network, about, image.numpy(), threads),
        peak(),
    ]
    if threads > 1:
        alone = NativeNetwork(packed.description, packed.tensors, threads=1)
        contenders.append(Contender("packed on 1 thread", lambda: alone.run(image_BHWC)))
    ours.run(image_BHWC)
    return contenders, {"runtime": ours.memory, "activations": _largest_activations(network, image)}


def _deployed(network: models.SpikingNetwork, kind: torch.dtype) -> Any:
    """The network as torch runs it best: one convolution where there were signs, scale and norm; weights of `kind`."""
    fixed: Any = frozen(network).float()
    for parent in list(fixed.modules()):
        for (name, convolution), (its_norm, norm) in pairwise(list(parent.named_children())):
            if isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(_real(convolution), norm))
                setattr(parent, its_norm, nn.Identity())
    return fixed.to(kind).to(memory_format=torch.channels_last)


def _real(convolution: nn.Module) -> nn.Conv2d:
    if isinstance(convolution, nn.Conv2d):
        return convolution
    assert isinstance(convolution, SignConv2d)
    signs: Any = convolution.signs
    outs, ins, kernel, _ = signs.weight.shape
    real = nn.Conv2d(ins, outs, kernel, signs.stride, signs.padding, bias=False)
    real.weight = nn.Parameter(signs.weight * convolution.scale[..., None], requires_grad=False)
    return real.eval()


def _onnxruntime(
    network: models.SpikingNetwork, about: About, image_BCHW: NDArray[np.float32], threads: int
) -> Iterator[Contender]:
    """The float graph in onnxruntime, where the extra `export` is installed."""
    try:
        runtime: Any = importlib.import_module("onnxruntime")
        with tempfile.TemporaryDirectory(prefix="agmm-bench-") as folder:
            path = Path(folder) / "net.onnx"
            write_onnx(network, about, path, np.moveaxis(image_BCHW, 1, -1))
            options = runtime.SessionOptions()
            options.intra_op_num_threads = threads
            session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except (ModuleNotFoundError, Missing):
        return
    yield Contender("onnxruntime", lambda: session.run(None, {"images": image_BCHW}))


@torch.no_grad()
def _as_if_trained(network: models.SpikingNetwork) -> None:
    """Statistics under which about a quarter of the neurons fire, as they do after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(0, 0.3)
            module.bias.normal_(0, 0.5)


def _largest_activations(network: nn.Module, image: Tensor) -> float:
    """Bytes of the largest layer's output over all steps, in float32."""
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel() * 4))
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    network(image)
    for hook in hooks:
        hook.remove()
    return float(max(sizes))


def _network_rows(network: Network, contenders: Sequence[Contender], memory: dict[str, float]) -> list[dict[str, Any]]:
    name = f"{network.arch}, {network.side} px, T = {network.steps}, batch 1"
    ours = contenders[0]
    rows = [
        paired(f"{name}: packed by {peer.name}", ours, peer, "images/s") for peer in contenders[1:] if peer.name != PEAK
    ]
    alone = row(f"{name}: packed, at best", 1e3 * min(ours.seconds), "ms")
    taken = row(f"{name}: memory by largest layer", memory["runtime"] / 1e6, "MB", memory["activations"] / 1e6)
    return [*rows, *(each | {"spread": None} for each in (alone, taken))]
