"""NeuroBench's metrics (Yik et al. 2025, Nat. Commun. 16:1545) of an artifact: its figures, and ours beside them.

They are computed by its own classes on a task and data that are not its own: they are no NeuroBench result. It sees
layers of torch, and neurons of snnTorch that are called once a step, so the network is shown to it as those, in
float64, where it fires as the artifact does.

Axes: T time steps, B inputs, C channels, H, W, K classes.
"""

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from agmm.export.agreement import Frozen, channels_first, checked_inputs
from agmm.export.extras import need
from agmm.metrics.firing import FiringMeter, total_firing_rate
from agmm.metrics.operations import OperationMeter, totals
from agmm.models import SpikingNetwork
from agmm.neuron import LIF, RateIF
from agmm.packed import artifact as artifacts
from agmm.packed.artifact import Artifact
from agmm.packed.frozen import SignConv2d

_FAILED = "Error running workload metric"  # NeuroBench prints it, and goes on with 0
NOTES = (
    "footprint_bytes is the size of the artifact's file, 1 bit a sign; footprint_bytes_float32 is what NeuroBench "
    "counts: parameters and buffers of the network in float32, batch normalisation's among them.",
    "synaptic_operations: both leave zero padding out. NeuroBench calls a layer's operations ACs where its inputs are "
    "0, 1 and -1, else effective MACs, of inputs that are not zero. AGMM's sops are accumulations, also of pooled or "
    "scaled spikes into signs; its macs are all products of a real-valued layer, zeros too, and one an element of what "
    "a gate multiplies, which NeuroBench does not see.",
    "membrane_updates: NeuroBench counts membranes that a step changes, and all neurons in the first step of a batch; "
    "AGMM's figure is one for each neuron and step.",
    "full_precision_layers: their weights have 32 bits; so have, at least, the scales, norms and gates of all layers.",
)


def neurobench_metrics(
    network: SpikingNetwork,
    artifact: Artifact,
    images: NDArray[Any],
    labels: NDArray[Any],
    batch_size: int = 8,
) -> dict[str, Any]:
    """NeuroBench's metrics as values for JSON; pairs of figures are of `neurobench` and of `agmm`, per input.

    Args:
        network: trained, and what `artifact` was packed from.
        artifact: for its size.
        images: normalised `[B, H, W, C]`, or frames `[B, T, H, W, C]`.
        labels: the class of each, `[B]`.
        batch_size: NeuroBench keeps every layer's inputs of so many images.

    Raises:
        agmm.export.extras.Missing: without neurobench or snntorch.
        ValueError: for no images, or of another shape than the artifact's; for other numbers of images and labels; for
            a metric that failed.

    """
    need("snntorch")
    metrics = need("neurobench.metrics.workload")
    images, labels = checked_inputs(images, artifact.description.input), np.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"There are {len(images)} images and labels of shape {list(labels.shape)}; each needs one.")
    batches = _batches(images, labels, batch_size)
    dynamic = [
        metrics.ClassificationAccuracy,
        metrics.ActivationSparsity,
        metrics.SynapticOperations,
        metrics.MembraneUpdates,
    ]
    shown = _shown(network)
    theirs = _benchmark(shown, batches, dynamic)
    static, operations = _static(_shown(network).float()), theirs["SynapticOperations"]
    rate, updates = _firing(network, batches)
    ours = _operations(shown, batches)
    return {
        "kind": "NeuroBench metrics",
        "neurobench": need("neurobench").__version__,
        "network": artifact.description.name,
        "inputs": len(images),
        "accuracy": theirs["ClassificationAccuracy"],
        "footprint_bytes": artifact.size or len(artifacts.to_bytes(artifact)),
        "footprint_bytes_float32": static["Footprint"],
        "parameters": static["ParameterCount"],
        "connection_sparsity": static["ConnectionSparsity"],
        "activation_sparsity": {"neurobench": theirs["ActivationSparsity"], "agmm": 1 - rate},
        "synaptic_operations": {
            "neurobench": {
                "effective_macs": operations["Effective_MACs"],
                "effective_acs": operations["Effective_ACs"],
                "dense": operations["Dense"],
            },
            "agmm": {"macs": ours["macs"], "sops": ours["sops"]},
        },
        "membrane_updates": {"neurobench": theirs["MembraneUpdates"], "agmm": updates},
        "full_precision_layers": _full_precision(shown),
        "notes": list(NOTES),
    }


class _Conv2d(nn.Conv2d):
    """A binary convolution as a layer that NeuroBench knows: its weights are signs times scales."""

    weight_bits = 1

    def __init__(self, layer: SignConv2d) -> None:
        signs = layer.signs
        outs, ins, *size = signs.weight.shape
        sizes: dict[str, Any] = {"kernel_size": tuple(size), "stride": signs.stride, "padding": signs.padding}
        super().__init__(ins, outs, bias=False, **sizes)
        self.weight = nn.Parameter(signs.weight * layer.scale[:, None], requires_grad=False)


class _Scan(nn.Module):
    """A layer of neurons that calls a layer of snnTorch once a step, whose `mem` NeuroBench reads."""

    def __init__(self, neuron: LIF) -> None:
        super().__init__()
        self.step = _one_step(neuron)

    def forward(self, x_T: Tensor) -> Tensor:
        self.step.start(x_T[0])
        return torch.stack([self.step(x)[0] for x in x_T.unbind(0)])


def _one_step(neuron: LIF) -> Any:
    """Our neuron as one of snnTorch's, for which NeuroBench has hooks."""
    base: Any = need("snntorch").SpikingNeuron

    class Step(base):  # type: ignore[misc]
        init_hidden = output = False

        def __init__(self) -> None:
            nn.Module.__init__(self)  # its own would add buffers, which count as footprint
            self.neuron, self.mem = neuron, torch.zeros(())

        def start(self, x: Tensor) -> None:
            self.mem = torch.full_like(x, 0.5 * float(neuron.level) if isinstance(neuron, RateIF) else 0.0)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            if isinstance(neuron, RateIF):
                spike = (self.mem + x >= neuron.level) * neuron.level
                self.mem = self.mem + x - spike
            else:
                spike, self.mem = neuron.step(self.mem, x)
            return spike, self.mem

    return Step()


def _shown(network: SpikingNetwork) -> Frozen:
    """The network as NeuroBench can see into it, in float64."""
    fixed = Frozen(network, torch.float64)
    for parent in list(fixed.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SignConv2d):
                setattr(parent, name, _Conv2d(child))
            elif isinstance(child, LIF):
                setattr(parent, name, _Scan(child))
    return fixed.eval()


def _batches(images: NDArray[Any], labels: NDArray[Any], size: int) -> "DataLoader[Any]":
    tensors = torch.from_numpy(channels_first(images)).double(), torch.from_numpy(labels.astype(np.int64))
    return DataLoader(TensorDataset(*tensors), batch_size=size)


@torch.inference_mode()
def _benchmark(shown: Frozen, batches: "DataLoader[Any]", metrics: list[Any]) -> dict[str, Any]:
    """NeuroBench's run. It prints, also of what fails."""
    model = need("neurobench.models").TorchModel(shown)
    model.add_activation_module(need("snntorch").SpikingNeuron)
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(StringIO()):
        benchmark = need("neurobench.benchmarks").Benchmark
        run = benchmark(model, batches, [], [lambda logits_BK: logits_BK.argmax(dim=1)], [[], metrics])
        found: dict[str, Any] = run.run()
        model.cleanup_hooks()
    failed = [line for line in said.getvalue().splitlines() if line.startswith(_FAILED)]
    if failed:
        raise ValueError(f"NeuroBench could not measure this network. {failed[0]}")
    return found


def _static(shown: Frozen) -> dict[str, Any]:
    model, metrics = need("neurobench.models").TorchModel(shown), need("neurobench.metrics.static")
    return {name: getattr(metrics, name)()(model) for name in ("Footprint", "ParameterCount", "ConnectionSparsity")}


@torch.inference_mode()
def _firing(network: SpikingNetwork, batches: "DataLoader[Any]") -> tuple[float, float]:
    """Our firing rate, and neurons times steps of an input."""
    fixed = Frozen(network, torch.float64)
    meter = FiringMeter(fixed, fixed.network.num_steps)
    inputs = 0
    with meter.measuring():
        for images, _ in batches:
            fixed(images)
            inputs += len(images)
    return total_firing_rate(meter.counts_LT2), float(meter.counts_LT2[..., 1].sum()) / inputs


@torch.inference_mode()
def _operations(shown: Frozen, batches: "DataLoader[Any]") -> dict[str, float]:
    meter, inputs = OperationMeter(shown), 0
    with meter.measuring():
        for images, _ in batches:
            shown(images)
            inputs += len(images)
    return totals(meter.per_image(inputs))


def _full_precision(shown: Frozen) -> list[str]:
    """Layers whose weights have 32 bits, by their name in the network."""
    layers = shown.network.named_modules()
    kinds = (nn.Conv2d, nn.Linear)
    return [name for name, layer in layers if isinstance(layer, kinds) and not isinstance(layer, _Conv2d)]
