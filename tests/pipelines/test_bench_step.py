"""Whole steps and what they keep, on a tiny network: that the benchmarks work, not what they find."""

import pytest
import torch

from agmm.kernels import fuse, native
from agmm.packed import native as packed
from pipelines.benchmarks import saved, step
from pipelines.benchmarks.race import PEAK
from pipelines.errors import UserError

TINY = {"side": 16, "batch": 2, "width": 8}
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
def test_less_is_kept_than_by_torch():
    rows = [row for row in saved.bench(**TINY)["rows"] if row["name"].endswith("by torch")]
    assert len(rows) == 2
    assert all(row["ratio"] < 0.8 for row in rows)


@needs_kernels
def test_what_is_kept_is_what_the_operations_need():
    """Of a block end: n and x in float32, and the spikes' bits with their border in its convolution."""
    network, images = step.make_network(16), torch.randn(2, 3, 64, 64)
    neurons = saved.count_neurons(network, images)
    fuse(network)
    assert 8 < saved.saved_bytes(network, images, half=False) / neurons < 11


def test_without_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(native, "_library", lambda: "they were not compiled")
    for bench in (lambda: step.bench(4, 1), saved.bench):
        with pytest.raises(UserError, match="no fused kernels to measure: they were not compiled"):
            bench()
