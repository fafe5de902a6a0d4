"""The NIR file of every kind of network: read back by nir, run with and without what NIR does not hold."""

import json

import numpy as np
import pytest
import torch

from agmm.export.agreement import logits
from agmm.export.nir import write_nir
from agmm.export.nir_graph import nir_graph
from agmm.export.nir_run import run_nir
from agmm.packed.artifact import Artifact
from agmm.packed.pack import pack
from tests.agmm.packed.networks import NETWORKS, about, make_images, make_network

nir = pytest.importorskip("nir", reason="the extra `export` is not installed")

# what of each network NIR has no node for
LEFT_OUT = {
    "resnet19": {"gate"},
    "resnet18": {"gate", "pool"},
    "odd": {"gate"},
    "vanilla": set(),
    "channel_gate": {"gate"},
    "constant_gate": set(),
    "backward_gate": set(),
    "tebn": {"gate", "step_factor"},
    "soft_if": {"gate", "reset"},
    "plif": {"gate"},
    "rate_if": {"reset", "start"},
    "q_snn": set(),
    "recu": set(),
    "learned": set(),
    "vggsnn": {"gate"},
    "vggsnn_odd": {"gate"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_reads_back_as_the_network(name, tmp_path):
    network, images = make_network(name), make_images(name)
    written = write_nir(network, about(name), tmp_path / "new" / "model.nir", images)
    assert list(written.path.parent.iterdir()) == [written.path]
    assert written.size == written.path.stat().st_size
    graph = nir.read(written.path)
    truth = logits(network, images, torch.float64)
    assert np.abs(run_nir(graph, images) - truth).max() < 1e-6
    assert written.agreement.exported.other_class == 0

    left_out = {f"agmm.{key}" for key in LEFT_OUT[name]}
    assert set(written.without) == (left_out | {"all"} if left_out else set())
    assert all(away.largest > 1e-3 for away in written.without.values())
    assert (
        np.abs(run_nir(graph, images, left_out) - truth).max() == written.without["all"].largest if left_out else True
    )
    text = "\n".join(written.statement)
    assert all(f"{key}: NIR has no node for" in text for key in left_out)
    assert ("Nothing else" in text) == (not left_out)


@pytest.mark.parametrize("name", NETWORKS)
def test_before_rounding_the_graph_is_the_network_spike_by_spike(name):
    network, images = make_network(name, seed=3), make_images(name, seed=4)
    graph = nir_graph(pack(network, about(name)), np.float64)
    assert np.abs(run_nir(graph, images) - logits(network, images, torch.float64)).max() < 1e-12


def test_the_file_says_what_the_network_takes_and_gives(tmp_path):
    network, images = make_network("vggsnn"), make_images("vggsnn")
    graph = nir.read(write_nir(network, about("vggsnn"), tmp_path / "model.nir", images).path)
    assert graph.nodes["input"].input_type["input"].tolist() == [2, 48, 48]
    assert graph.nodes["output"].output_type["output"].tolist() == [5]
    said = json.loads(graph.metadata["agmm.description"])
    assert said["classes"] == list("abcde")
    assert said["time_steps"] == int(graph.metadata["agmm.time_steps"]) == 3
    assert graph.nodes["output"].metadata == {"agmm.readout": "mean"}


def test_a_neuron_of_nir_is_ours_also_on_the_threshold():
    """u = 0.5 v + x, spike at u >= 1: by hand 0.5, 1.0 (a spike), 0.99, and 0.5 * 0.99 + 0.505 = 1 (a spike)."""
    graph = nir_graph(pack(make_network("vanilla"), about("vanilla")))
    node = graph.nodes["block0_neuron"]
    dt, v, spikes = float(graph.metadata["agmm.dt"]), np.float64(0), []
    tau, r, threshold = (values.flat[0] for values in (node.tau, node.r, node.v_threshold))
    for x in (0.5, 0.75, 0.99, 0.505):
        u = v + dt / tau * (-v + r * x)
        spikes.append(bool(u > threshold))
        v = np.where(u > threshold, node.v_reset.flat[0], u)
    assert spikes == [False, True, False, True]
    assert np.nextafter(threshold, 2) == 1
    assert r == pytest.approx(tau / dt, rel=1e-12)  # what snnTorch's import asks for


def test_factors_of_steps_without_a_mean_are_refused():
    packed = pack(make_network("tebn"), about("tebn"))
    rows = packed.tensors["blocks.0.affine"].copy()
    rows[:, 1], rows[:, 2] = -rows[:, 0], 0
    with pytest.raises(ValueError, match="add up to 0"):
        nir_graph(Artifact(packed.description, dict(packed.tensors) | {"blocks.0.affine": rows}))


def test_a_node_of_another_kind_is_refused():
    graph = nir.NIRGraph.from_list(nir.Threshold(np.ones((3, 4, 4))))
    graph.metadata = {"agmm.time_steps": 1, "agmm.dt": 1e-4}
    with pytest.raises(ValueError, match="Cannot run a NIR node of kind Threshold"):
        run_nir(graph, np.zeros((1, 4, 4, 3), np.float32))


@pytest.mark.parametrize("name", ["vanilla", "constant_gate", "learned"])
def test_snntorch_runs_the_file_as_the_network(name, tmp_path):
    """Another project's reading of NIR; these networks have nothing that NIR does not hold."""
    pytest.importorskip("nirtorch", reason="nirtorch, with which snnTorch reads NIR, is not installed")
    importing = pytest.importorskip("snntorch.import_nir", reason="snnTorch is not installed")
    network, images = make_network(name), make_images(name, 1)  # its Flatten(0) takes the batch with it
    graph = nir.read(write_nir(network, about(name), tmp_path / "model.nir", images).path)
    module, state, outputs = importing.import_from_nir(graph).eval(), None, []
    with torch.inference_mode():
        for _ in range(network.num_steps):
            output, state = module(torch.from_numpy(images).permute(0, 3, 1, 2), state)
            outputs.append(output)
    logits_K = torch.stack(outputs).mean(0).flatten().numpy()
    assert np.abs(logits_K - logits(network, images, torch.float64)[0]).max() < 1e-5
