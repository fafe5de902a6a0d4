"""Runs a NIR graph on the CPU in float64, with what AGMM keeps in its metadata or, as other tools do, without it.

Of NIR's nodes those that `agmm.export.nir` writes. Axes: T time steps, B batch, C channels, H, W, K classes.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from agmm.export.agreement import channels_first, in_batches


def run_nir(graph: Any, images: NDArray[Any], without: Collection[str] = ()) -> NDArray[np.float64]:
    """Mean of the outputs over T, `[B, K]`, of images `[B, H, W, C]`, shown T times, or frames `[B, T, H, W, C]`.

    `without` names metadata of nodes to leave out. Raises ValueError for a node of another kind, or a cycle.
    """
    return in_batches(lambda part: _run(graph, part, without), images)


@torch.inference_mode()
def _run(graph: Any, images: NDArray[Any], without: Collection[str]) -> NDArray[np.float64]:
    steps, dt = int(graph.metadata["agmm.time_steps"]), float(graph.metadata["agmm.dt"])
    x = torch.from_numpy(channels_first(images)).double()
    x_TBCHW = x.transpose(0, 1) if x.ndim == 5 else x.expand(steps, *x.shape)
    before = defaultdict[str, list[str]](list)
    for source, name in graph.edges:
        before[name].append(source)
    values: dict[str, Tensor] = {}
    for name in TopologicalSorter(before).static_order():
        node = graph.nodes[name]
        kind = type(node).__name__
        if kind not in _KINDS:
            raise ValueError(f"Cannot run a NIR node of kind {kind}. Known: {', '.join(_KINDS)}.")
        about = {key: value for key, value in node.metadata.items() if key not in without}
        total = sum((values[source] for source in before[name]), torch.zeros(())) if before[name] else x_TBCHW
        values[name] = _KINDS[kind](node, total, dt, about)
    (output,) = graph.outputs
    return values[output].mean(dim=0).numpy()


About = Mapping[str, Any]


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float64))


def _pair(values: Any) -> tuple[int, int]:
    first, second = np.broadcast_to(values, 2).tolist()
    return int(first), int(second)


def _conv(node: Any, x_TBCHW: Tensor, _dt: float, about: About) -> Tensor:
    out = F.conv2d(
        x_TBCHW.flatten(0, 1),
        _tensor(node.weight),
        _tensor(node.bias),
        _pair(node.stride),
        _pair(node.padding),
        _pair(node.dilation),
        int(node.groups),
    ).unflatten(0, x_TBCHW.shape[:2])
    if "agmm.step_factor" in about:
        out = out * _tensor(about["agmm.step_factor"]).view(-1, 1, 1, 1, 1)
    if "agmm.gate" not in about:
        return out
    mean = out.mean(dim=(2, 3, 4) if about["agmm.gate"] == "sample" else (3, 4), keepdim=True)
    return out * torch.sigmoid(_tensor(about["agmm.alpha"]).view(-1, 1, 1, 1, 1) * mean)


def _pool(node: Any, x_TBCHW: Tensor, _dt: float, about: About) -> Tensor:
    sizes = [_pair(values) for values in (node.kernel_size, node.stride, node.padding)]
    pool: Callable[..., Tensor] = F.max_pool2d if about.get("agmm.pool") == "max" else F.avg_pool2d
    return pool(x_TBCHW.flatten(0, 1), *sizes).unflatten(0, x_TBCHW.shape[:2])


def _lif(node: Any, x_T: Tensor, dt: float, about: About) -> Tensor:
    kept = dt / _tensor(node.tau)
    rest, current_T = kept * _tensor(node.v_leak), kept * _tensor(node.r) * x_T + kept * _tensor(node.v_leak)
    assert not rest.any(), "a membrane's rest is 0"
    return _fire(node, current_T, 1 - kept, about)


def _if(node: Any, x_T: Tensor, dt: float, about: About) -> Tensor:
    return _fire(node, dt * _tensor(node.r) * x_T, torch.ones((), dtype=torch.float64), about)


def _fire(node: Any, current_T: Tensor, leak: Tensor, about: About) -> Tensor:
    threshold, reset = _tensor(node.v_threshold), _tensor(node.v_reset)
    v, spikes = torch.full_like(current_T[0], float(about.get("agmm.start", 0))), []
    for current in current_T:
        u = leak * v + current
        spike = u > threshold
        v = u - threshold * spike if about.get("agmm.reset") == "soft" else torch.where(spike, reset, u)
        spikes.append(spike.double())
    return torch.stack(spikes)


def _flatten(node: Any, x_TB: Tensor, _dt: float, _about: About) -> Tensor:
    start, end = int(node.start_dim), int(node.end_dim)
    return x_TB.flatten(2 + start, end if end < 0 else 2 + end)


def _same(_node: Any, x: Tensor, _dt: float, _about: About) -> Tensor:
    return x


_KINDS: dict[str, Callable[[Any, Tensor, float, About], Tensor]] = {
    "Input": _same,
    "Output": _same,
    "Conv2d": _conv,
    "AvgPool2d": _pool,
    "LIF": _lif,
    "IF": _if,
    "Flatten": _flatten,
    "Affine": lambda node, x, _dt, _about: x @ _tensor(node.weight).T + _tensor(node.bias),
    "Scale": lambda node, x, _dt, _about: x * _tensor(node.scale),
}
