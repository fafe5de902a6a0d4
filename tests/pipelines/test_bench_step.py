"""Whole steps and what they keep, on a tiny network: that the benchmarks work, not what they find."""

import pytest
import torch

from agmm.kernels import fuse, native
from agmm.packed import native as packed
from pipelines.benchmarks import saved, step
from pipelines.benchmarks.race import PEAK
from pipelines.errors import UserError

TINY = {"side": 48, "batch": 2, "width": 8}  # smaller, and torch's own bfloat16 has gradients that are no numbers
needs_kernels = pytest.mark.skipif(
    not (native.available() and packed.available()), reason=native.why_not() or packed.why_not()
)


@needs_kernels
def test_ours_are_paired_with_each_peer():
    result = step.bench(4, 1, compiled=False, **TINY)
    names = [row["name"].split(": ")[1] for row in result["rows"]]
    for ours in ("float32", "bfloat16"):
        for peer in ("float32", "bfloat16"):
            assert f"fused, {ours} by torch, {peer}" in names
    assert not any(PEAK in name for name in names)
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in result["rows"])


@needs_kernels
@pytest.mark.slow
def test_each_mode_is_counted_and_timed_beside_its_peers():
    rows = saved.bench(4, 1, **TINY)["rows"]
    names = [row["name"].split(": ")[1] for row in rows]
    for mode in ("fast", "balanced", "least"):
        assert f"run.memory={mode}, float32 by torch, float32" in names
        assert f"a step of run.memory={mode}, bfloat16 by torch, float32" in names
    assert all(row["ratio"] < 1 for row in rows if row["name"].endswith("fast, float32 by torch, float32"))
    assert all(row["ratio"] > 0 for row in rows if "a step of" in row["name"])


@needs_kernels
@pytest.mark.parametrize(("mode", "most"), [("fast", 8.5), ("balanced", 2.4), ("least", 0.5)])
def test_a_mode_keeps_what_it_says(mode, most):
    """Of a narrow network, whose bits have words that are not full."""
    network, images = step.make_network(32), torch.randn(8, 3, 64, 64)
    images = images.contiguous(memory_format=torch.channels_last)
    neurons = saved.count_neurons(network, images)
    fuse(network, mode)
    assert most * 0.6 < saved.saved_bytes(network, images, half=False) / neurons < most


def test_without_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(native._kernels, "_found", "they were not compiled")
    for bench in (lambda: step.bench(4, 1), lambda: saved.bench(4, 1)):
        with pytest.raises(UserError, match="no fused kernels to measure: they were not compiled"):
            bench()
