"""A packed network as a graph of NIR (Pedersen et al. 2024, Nat. Commun. 15:8122), which neuromorphic tools read.

What NIR holds exactly: convolutions with the weight's scale and batch normalisation folded in, neurons with leak and
hard reset, average pools, shortcuts (several edges into one node add up), the head. Weights are float32, so 32 bits for
each sign. What it does not hold is in metadata under names that begin with `agmm.`, and in the statement of an export:

- graph: `agmm.description` (JSON: all of `agmm.packed.description.Description`), `agmm.dt`, `agmm.time_steps`;
- a Conv2d: `agmm.step_factor` [T], what its output is multiplied by at each step; then `agmm.gate` (`sample` or
  `channel`) with `agmm.alpha` [T]: the output is multiplied by sigmoid(alpha[t] * its mean over C, H, W or over H, W);
- a neuron: `agmm.reset` = `soft`: a spike takes the threshold off the membrane; `agmm.start`: the first membrane;
- an AvgPool2d: `agmm.pool` = `max`: it stands for a max-pool;
- Output: `agmm.readout` = `mean`: the answer is the mean of its T values.

**Neurons.** Ours are u = leak * v + x; s = u >= threshold; v = 0 after a spike. NIR's LIF is tau * dv/dt = -v + r * x
with a spike at v > v_threshold. One forward Euler step of it, v + dt / tau * (-v + r * x), is ours with
tau = dt / (1 - leak) and r = 1 / (1 - leak) = tau / dt. A leak of 1 is an IF, dv/dt = r * x, with r = 1 / dt.
v_threshold is the float64 just below the threshold, because NIR's comparison is strict. `dt` is 1e-4 s, the step that
snnTorch takes a NIR graph to have.

Axes: T time steps, O, C channels, H, W, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agmm.export.extras import need
from agmm.packed.artifact import Artifact
from agmm.packed.description import Block, Description, Neuron
from agmm.packed.pack import NotPackable
from agmm.packed.reference import unpack_signs

DT = 1e-4
Array = NDArray[Any]
Shape = tuple[int, int, int]  # C, H, W


@dataclass
class _Stream:
    """What the next node takes: the sum of the outputs of `sources`, each `[C, H, W]`."""

    sources: list[str]
    shape: Shape


def nir_graph(artifact: Artifact, dtype: type[np.floating[Any]] = np.float32) -> Any:
    """The `nir.NIRGraph` of an artifact, its weights in `dtype`.

    Raises agmm.export.extras.Missing without nir, and ValueError for a norm whose factors of the steps add up to 0.
    """
    return _Builder(artifact, dtype).graph()


@dataclass
class _Builder:
    """Adds nodes behind streams, with what NIR has."""

    artifact: Artifact
    dtype: type[np.floating[Any]]
    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._nir = need("nir")
        self._tensors: Mapping[str, Array] = self.artifact.tensors

    def graph(self) -> Any:
        description = self.artifact.description
        x = self._stem(description)
        for number, block in enumerate(description.blocks):
            x = self._block(f"block{number}", number, block, x)
        self._tail(description, x)
        about = {
            "agmm.description": description.model_dump_json(),
            "agmm.dt": DT,
            "agmm.time_steps": description.time_steps,
        }
        return self._nir.NIRGraph(self.nodes, self.edges, metadata=about)

    def _add(self, name: str, node: Any, x: _Stream, shape: Shape) -> _Stream:
        self.nodes[name] = node
        self.edges += [(source, name) for source in x.sources]
        return _Stream([name], shape)

    def _stem(self, description: Description) -> _Stream:
        taken, stem = description.input, description.stem
        shape = (taken.channels, taken.height, taken.width)
        self.nodes["input"] = self._nir.Input({"input": np.array(shape)})
        x = _Stream(["input"], shape)
        scale, bias = self._tensors["stem.affine"][:, 0]
        weight = self._tensors["stem.weight"].astype(np.float64) * scale[:, None, None, None]
        x = self._conv("stem", weight, bias, stem.stride, x)
        return self._max_pool("stem_pool", x) if stem.max_pool else x

    def _block(self, name: str, number: int, block: Block, x: _Stream) -> _Stream:
        spikes = self._neuron(f"{name}_neuron", block.neuron, x)
        spikes = self._halve(f"{name}_pool", spikes) if block.pool else spikes
        signs = unpack_signs(self._tensors[f"blocks.{number}.signs"], block.in_channels).transpose(0, 3, 1, 2)
        (scale, bias), about = _per_step(self._tensors[f"blocks.{number}.affine"])
        if block.gate != "none":
            about |= {"agmm.gate": block.gate, "agmm.alpha": self._tensors[f"blocks.{number}.alpha"]}
        weight = signs * (scale * block.neuron.amplitude)[:, None, None, None]
        out = self._conv(f"{name}_conv", weight, bias, block.stride, spikes, about)
        shortcut = self._shortcut(f"{name}_shortcut", number, block, x)
        return _Stream(out.sources + shortcut, out.shape)

    def _shortcut(self, name: str, number: int, block: Block, x: _Stream) -> list[str]:
        if block.shortcut != "projection":
            return x.sources if block.shortcut == "identity" else []
        x = self._halve(f"{name}_pool", x) if block.stride > 1 else x
        (scale, bias), about = _per_step(self._tensors[f"blocks.{number}.shortcut.affine"])
        weight = self._tensors[f"blocks.{number}.shortcut.weight"].astype(np.float64) * scale[:, None]
        return self._conv(name, weight[:, :, None, None], bias, 1, x, about).sources

    def _tail(self, description: Description, x: _Stream) -> None:
        tail, head = description.tail, self._tensors["head.weight"].astype(np.float64)
        if tail.neuron is None:
            size = np.array(x.shape[1:])
            x = self._add("mean", self._nir.AvgPool2d(size, size, np.zeros(2, int)), x, (x.shape[0], 1, 1))
        else:
            x = self._neuron("tail_neuron", tail.neuron, x)
            x = self._halve("tail_pool", x) if tail.pool else x
            head = _over_places(head * tail.neuron.amplitude, x.shape, tail.grid)
        places = (int(np.prod(x.shape)), 1, 1)
        x = self._add("flatten", self._nir.Flatten({"input": np.array(x.shape)}, 0, -1), x, places)
        affine = self._nir.Affine(head.astype(self.dtype), self._tensors["head.bias"].astype(self.dtype))
        x = self._add("head", affine, x, (description.num_classes, 1, 1))
        logits = {"output": np.array([description.num_classes])}
        self._add("output", self._nir.Output(logits, metadata={"agmm.readout": "mean"}), x, x.shape)

    def _conv(
        self, name: str, weight: Array, bias: Array, stride: int, x: _Stream, about: Mapping[str, Any] | None = None
    ) -> _Stream:
        node = self._nir.Conv2d(
            input_shape=x.shape[1:],
            weight=weight.astype(self.dtype),
            stride=stride,
            padding=weight.shape[2] // 2,
            dilation=1,
            groups=1,
            bias=bias.astype(self.dtype),
            metadata=dict(about or {}),
        )
        rows, columns = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
        return self._add(name, node, x, (len(weight), rows, columns))

    def _neuron(self, name: str, neuron: Neuron, x: _Stream) -> _Stream:
        def filled(value: float) -> Array:
            return np.full(x.shape, value)

        about: dict[str, Any] = {} if neuron.reset == "hard" else {"agmm.reset": neuron.reset}
        about |= {"agmm.start": neuron.start} if neuron.start else {}
        below, rest = filled(np.nextafter(neuron.threshold, 0)), filled(0)
        if neuron.leak == 1:
            node = self._nir.IF(filled(1 / DT), below, rest, metadata=about)
        else:
            kept = 1 - neuron.leak
            node = self._nir.LIF(filled(DT / kept), filled(1 / kept), rest, below, rest, metadata=about)
        return self._add(name, node, x, x.shape)

    def _max_pool(self, name: str, x: _Stream) -> _Stream:
        sizes = (np.array([3, 3]), np.array([2, 2]), np.array([1, 1]))
        node = self._nir.AvgPool2d(*sizes, metadata={"agmm.pool": "max"})
        return self._add(name, node, x, (x.shape[0], -(-x.shape[1] // 2), -(-x.shape[2] // 2)))

    def _halve(self, name: str, x: _Stream) -> _Stream:
        """Average pool of 2; where a border leaves a row or column alone, its mean is over what is there."""
        channels, height, width = x.shape
        shape = (channels, -(-height // 2), -(-width // 2))
        if height % 2 == width % 2 == 0:
            two = np.array([2, 2])
            return self._add(name, self._nir.AvgPool2d(two, two, np.zeros(2, int)), x, shape)
        # NIR's pools leave such a border out: a convolution whose kernels' first row and column are zero sees it, with
        # zeros beyond it, and a factor for every place makes means of the sums; its type check refuses groups
        kernel = np.zeros((channels, channels, 3, 3))
        kernel[range(channels), range(channels), 1:, 1:] = 1
        x = self._conv(f"{name}_sum", kernel, np.zeros(channels), 2, x)
        counts = [np.minimum(2, size - np.arange(0, size, 2)) for size in (height, width)]
        share = np.broadcast_to(1 / np.outer(*counts), shape)
        return self._add(name, self._nir.Scale(share.astype(self.dtype)), x, shape)


def _per_step(affine_2SO: Array) -> tuple[Array, dict[str, Any]]:
    """Scale and bias `[2, O]` that NIR can hold, and metadata with each step's factor where steps differ.

    All channels of a step have one factor: TEBN, Eq. 6.
    """
    mean = affine_2SO.mean(axis=1)
    if affine_2SO.shape[1] == 1:
        return mean, {}
    square = float((mean * mean).sum())
    if square == 0:
        raise NotPackable("A norm's factors of the time steps add up to 0: NIR can hold no mean of them.")
    return mean, {"agmm.step_factor": np.einsum("aso,ao->s", affine_2SO, mean) / square}


def _over_places(head_KF: Array, shape: Shape, grid: int) -> Array:
    """The head on all places `[K, C * H * W]`, from one on the means over a grid of places `[K, C * grid * grid]`."""
    down, across = (_shares(size, grid) for size in shape[1:])
    head = head_KF.reshape(len(head_KF), shape[0], grid, grid)
    return np.einsum("kcij,ih,jw->kchw", head, down, across).reshape(len(head_KF), -1)


def _shares(size: int, grid: int) -> Array:
    """`[grid, size]`: of which mean along one axis each position is which part, as torch's adaptive pool draws them."""
    shares = np.zeros((grid, size))
    for place in range(grid):
        start, end = place * size // grid, -(-(place + 1) * size // grid)
        shares[place, start:end] = 1 / (end - start)
    return shares
