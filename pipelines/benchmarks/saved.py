"""What autograd keeps of a forward pass, in bytes per neuron and time step, against plain torch and SpikingJelly.

Counted, not timed: every storage that a saved tensor lies in, once, but for parameters and buffers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from agmm.kernels import check, fuse, native
from agmm.metrics.firing import FiringMeter
from pipelines.benchmarks import circumstances, row
from pipelines.benchmarks.peers import has_spikingjelly, versions
from pipelines.benchmarks.race import machine
from pipelines.benchmarks.step import ARCH, BATCH, SIDE, STEPS, make_network, with_spikingjelly
from pipelines.errors import UserError
from pipelines.progress import Progress

_UNIT = "bytes"


def bench(*, side: int = SIDE, batch: int = BATCH, width: int = 64) -> dict[str, Any]:
    """Rows of ours by each peer in float32 and bfloat16. Raises UserError where there are no compiled passes."""
    if not check.agrees():
        raise UserError(f"There are no fused kernels to measure: {native.why_not() or check.difference()}.")
    kinds = dict(_kinds())
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    found: dict[tuple[str, bool], float] = {}
    with Progress(2 * len(kinds), "measure", "network") as progress:
        for name, change in kinds.items():
            for half in (False, True):
                network = make_network(width)
                neurons = count_neurons(network, images)
                change(network)
                found[name, half] = saved_bytes(network, images, half=half) / neurons
                progress.advance()
    title = f"{ARCH}, width {width}, {side} px, T = {STEPS}, batch {batch}"
    rows = [
        row(f"{title}, {'bfloat16' if half else 'float32'}: fused by {name}", found["fused", half], _UNIT, bytes_each)
        | {"spread": None}
        for (name, half), bytes_each in found.items()
        if name != "fused"
    ]
    return {"rows": rows, **circumstances(), "threads": torch.get_num_threads(), **machine(), "peers": versions()}


def _kinds() -> Iterator[tuple[str, Callable[[nn.Module], Any]]]:
    yield "fused", fuse
    yield "torch", lambda _: None
    if has_spikingjelly():
        yield "SpikingJelly", with_spikingjelly


def count_neurons(network: nn.Module, images: Tensor) -> int:
    """Neurons of all layers, samples and time steps."""
    meter = FiringMeter(network, STEPS)
    with torch.inference_mode(), meter.measuring():
        network(images)
    return int(meter.counts_LT2[..., 1].sum())


def saved_bytes(network: nn.Module, images: Tensor, *, half: bool) -> int:
    """Of all storages that autograd keeps of a forward pass, but for those of the network and the images."""
    own = {each.untyped_storage().data_ptr() for each in (*network.parameters(), *network.buffers(), images)}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        warnings.catch_warnings(),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        warnings.simplefilter("ignore")  # the peer's own
        kept = network(images)  # what was kept lives as long as this
        total = sum(sizes.values())
        del kept
    return total
