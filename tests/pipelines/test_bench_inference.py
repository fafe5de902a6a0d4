"""That the benchmark of inference runs, and that a row is what it says; its figures are not tested."""

import os

import pytest

from agmm.packed import native
from pipelines.benchmarks import inference
from pipelines.benchmarks.inference import Network
from pipelines.benchmarks.race import PEAK, Contender, paired
from pipelines.errors import UserError

needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_not())


@needs_kernels
def test_every_contender_is_timed_and_the_process_is_given_back():
    cores = os.sched_getaffinity(0)
    result = inference.bench(4, 1, networks=(Network("agmm_resnet19", 1, 8, 10),))
    assert os.sched_getaffinity(0) == cores
    names = [row["name"] for row in result["rows"]]
    for channels, side in inference.LAYERS:
        layer = f"{channels} channels, {side} x {side}, T = 4: packed by "
        assert {layer + peer for peer in ("float32", "bfloat16", "int8", PEAK)} <= set(names)
    assert "agmm_resnet19, 8 px, T = 1, batch 1: packed by float32" in names
    assert all(row["ours"] > 0 for row in result["rows"])
    assert result["kernels"] == native.available()[0]
    assert result["processor"]


def test_a_ratio_is_the_median_of_the_rounds_own():
    ours, peer = Contender("packed", lambda: None), Contender("float32", lambda: None)
    ours.seconds, peer.seconds = [1.0, 2.0, 4.0, 1.0, 1.0], [2.0, 4.0, 8.0, 30.0, 2.0]  # the machine was busy twice
    row = paired("x", ours, peer, "GMAC/s", 6.0, 3.0)
    assert (row["ours"], row["peer"]) == (6.0, 0.75)
    assert row["ratio"] == 2 * 2.0


def test_more_threads_than_cores_are_refused(monkeypatch):
    monkeypatch.setattr(native, "why_not", lambda: "")
    with pytest.raises(UserError, match="wants as many cores"):
        inference.bench(4, 10_000, layers=False, networks=())
