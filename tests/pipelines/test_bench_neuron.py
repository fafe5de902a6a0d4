"""That the benchmark of the fused operation runs, and that its contenders compute the same; figures are not tested."""

import os

import pytest
import torch

from agmm.kernels import native
from agmm.kernels.memory import keep_memory
from agmm.packed import native as packed
from pipelines.benchmarks import neuron, peers
from pipelines.errors import UserError

SHAPE = (4, 2, 16, 8, 8)
needs_passes = pytest.mark.skipif(not native.available(), reason=native.why_not())


@needs_passes
@pytest.mark.skipif(not packed.available(), reason=packed.why_not())
def test_every_contender_is_timed_and_the_process_is_given_back():
    cores = os.sched_getaffinity(0)
    result = neuron.bench(4, 1, shapes=[SHAPE], compiled=False)
    assert os.sched_getaffinity(0) == cores
    names = {row["name"] for row in result["rows"]}
    for kind in ("block", "neuron"):
        for layout in ("channels first", "channels last"):
            for peer in ("torch", "snnTorch", "a copy"):
                assert f"{kind} 4x2x16x8x8, {layout}: fused by {peer}" in names
    assert all(row["ours"] > 0 for row in result["rows"])
    assert "snntorch" in result["peers"]


def test_peers_have_our_neuron():
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    spikes = neuron.LIF(neuron.LEAK)(x)
    found = dict(peers.peers())
    assert "snnTorch" in found
    for peer in found.values():
        with torch.no_grad():
            # snnTorch fires above the threshold, and resets at the next step: the same but for that
            assert (peer(x) != spikes).float().mean() < 0.02


def test_without_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(native._kernels, "_found", "there is no compiler")
    with pytest.raises(UserError, match="no fused kernels to measure: there is no compiler"):
        neuron.bench(4, 1)


def test_memory_is_kept_where_the_c_library_can(monkeypatch):
    assert isinstance(keep_memory(), bool)
    monkeypatch.setattr("platform.libc_ver", lambda: ("musl", "1"))
    assert not keep_memory()
