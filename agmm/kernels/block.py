"""The fused operation where it can run, the reference where it cannot.

It can for a `LIF` or `IF`, behind batch normalisation and a gate that is adaptive both ways, constant or none; where
nobody watches the norm, the gate or the neuron by a hook, which would see nothing; and where the compiled passes, in
float32 on the CPU, or the graph, on GPUs, are there and agree with the reference on this machine.

Axes: T time steps, B batch, C channels, H, W.
"""

from torch import Tensor, nn

from agmm.kernels import check, compiled, inductor, reference
from agmm.kernels.counted import Counted
from agmm.precision import at_least_float32


def block_end(
    n_TBCHW: Tensor | Counted,
    r_TBCHW: Tensor | None,
    norm: nn.Module,
    gate: nn.Module,
    neuron: nn.Module | None,
    unit_C: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A convolution's output and the shortcut's stream to (the new stream, its spikes), both `[T, B, C, H, W]`.

    That is x = gate(norm(unit * n)) + r and neuron(x), of a unit that is a constant, or None for 1; see
    `agmm.kernels.reference`. Running statistics are updated. Without a neuron the spikes are empty.
    """
    n = n_TBCHW if isinstance(n_TBCHW, Counted) else Counted(at_least_float32(n_TBCHW), unit=unit_C)
    function = reference.block_end
    if compiled.knows(norm, gate, neuron, n.n.shape[0]):
        if compiled.takes_counted(n, r_TBCHW) and check.agrees():
            function = compiled.block_end
        elif inductor.takes(n.n, norm) and check.graph_agrees(n.n.device):
            function = inductor.block_end
    return function(n, r_TBCHW, norm, gate, neuron)


def spikes(x_T: Tensor, neuron: nn.Module) -> Tensor:
    """A current `[T, ...]` to the spikes of a layer of neurons."""
    can = compiled.takes(x_T) and compiled.knows_neuron(neuron) and check.agrees()
    return compiled.spikes(x_T, neuron) if can else neuron(x_T)
