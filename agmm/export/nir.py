"""Writes a NIR file, and says what NIR does not hold of the network and what leaving that out does to its answers.

Axes: B inputs, K classes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agmm.export.agreement import Agreement, Array, Distance, agree, checked_inputs, distance, logits
from agmm.export.extras import need
from agmm.export.nir_graph import nir_graph
from agmm.export.nir_run import run_nir
from agmm.models import SpikingNetwork
from agmm.packed import artifact as artifacts
from agmm.packed.description import Description
from agmm.packed.files import whole
from agmm.packed.pack import About, pack
from agmm.packed.verify import Differs

_EXACT = 1e-6  # of logits, in float64
# What NIR has no node for, by the metadata that has it.
_MISSING = {
    "agmm.gate": "the gate of {} convolutions, which depends on its input",
    "agmm.step_factor": "the norm's factor per time step, of {} convolutions",
    "agmm.reset": "the soft reset of {} layers of neurons",
    "agmm.start": "the membrane at the start of {} layers of neurons",
    "agmm.pool": "{} max-pool, which stands as an average pool",
}


@dataclass(frozen=True)
class NirExport:
    """What was written.

    Attributes:
        path: the file.
        size: its bytes.
        agreement: how the file, read back and run in float64 with its metadata, answers against the network.
        without: the same without the metadata of one name, for each that the file has, and for all of them (`all`):
            what a tool computes that knows NIR alone.
        statement: what NIR does not hold of this network, in sentences, with those figures.

    """

    path: Path
    size: int
    agreement: Agreement
    without: dict[str, Distance]
    statement: tuple[str, ...]


def write_nir(network: SpikingNetwork, about: About, path: Path, images: NDArray[Any]) -> NirExport:
    """Write `network` to `path` as NIR (HDF5), whole or not at all, after reading it back and running it.

    Args:
        network: trained, with a packed form.
        about: what the file says of it, in its metadata.
        path: of the file; its folder is made.
        images: normalised `[B, H, W, C]`, or frames `[B, T, H, W, C]`, to compare on; each takes up to ten passes.

    Raises:
        agmm.export.extras.Missing: without nir.
        agmm.packed.verify.Differs: where the graph answers otherwise.
        ValueError: for a network without a packed form, no images, or of another shape than `about` says.
        OSError: where the file cannot be written.

    """
    nir, images = need("nir"), checked_inputs(images, about.input)
    artifact = pack(network, about)
    truth, float32 = (logits(network, images, dtype) for dtype in (torch.float64, torch.float32))
    _check(run_nir(nir_graph(artifact, np.float64), images), truth)
    with whole(path) as partial:
        nir.write(partial, nir_graph(artifact))
        read = nir.read(partial)
        agreement = agree("The NIR graph", run_nir(read, images), truth, float32)
    without = _without(read, truth, lambda names: run_nir(read, images, names))
    sizes = path.stat().st_size, len(artifacts.to_bytes(artifact))
    statement = _statement(artifact.description, read, sizes, agreement, without)
    return NirExport(path, sizes[0], agreement, without, statement)


def _check(logits_BK: Array, truth_BK: Array) -> None:
    """Before weights are rounded to float32 the graph is the network."""
    largest = float(np.abs(logits_BK - truth_BK).max())
    if not largest <= _EXACT:
        raise Differs(f"The NIR graph in float64 is not the network: logits differ by {largest:.3g}.")


def _metadata(graph: Any) -> Counter[str]:
    """How many nodes have which of the metadata that NIR has no node for."""
    return Counter(key for node in graph.nodes.values() for key in node.metadata if key in _MISSING)


def _without(graph: Any, truth_BK: Array, run: Callable[[list[str]], Array]) -> dict[str, Distance]:
    names = list(_metadata(graph))
    found = {name: distance(truth_BK, run([name])) for name in names}
    return found | ({"all": distance(truth_BK, run(names))} if names else {})


def _statement(
    description: Description, graph: Any, sizes: tuple[int, int], agreement: Agreement, without: dict[str, Distance]
) -> tuple[str, ...]:
    steps, counts = description.time_steps, _metadata(graph)
    shown = "one frame a step" if description.input.frames else "the same image at every step"
    lines = [
        f"Bits: NIR has no 1-bit weights. Every sign is a float32 with its scale: {sizes[0]:,} bytes, compressed; the "
        f"packed artifact has {sizes[1]:,}.",
        "Batch normalisation: NIR has none. Its affine of evaluation is folded into weights and biases, which is exact "
        "but for rounding.",
        f"Time: the reader runs T = {steps} steps of dt = {float(graph.metadata['agmm.dt']):g} s by forward Euler, "
        f"gives {shown}, and takes the mean of the {steps} outputs as logits.",
        "Preprocessing, class names and source are in the graph's metadata agmm.description, as JSON.",
    ]
    lines += [
        f"{key}: NIR has no node for {_MISSING[key].format(counts[key])}. {_effect(without[key])}" for key in counts
    ]
    if len(counts) > 1:
        lines.append(f"All of these together: {_effect(without['all'])}")
    if not counts:
        lines.append("Nothing else: the graph's nodes alone are the network.")
    return (*lines, f"Read back with nir.read and run in float64, with all metadata: {agreement}.")


def _effect(away: Distance) -> str:
    return f"Left out, {away}."
