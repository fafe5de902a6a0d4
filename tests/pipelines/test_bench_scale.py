"""`agmm bench scale`: from measurements to a checked model, rows and a picture; and that the measuring works."""

import json
import os
from dataclasses import astuple

import numpy as np
import pytest

from pipelines.benchmarks import links, scale
from pipelines.benchmarks.comm import Size
from pipelines.benchmarks.links import Links, Shaped
from pipelines.benchmarks.namespaces import why_not
from pipelines.benchmarks.scale import Inputs, Model
from pipelines.benchmarks.scale_exchange import ALGORITHMS, KINDS, Bucket, Costs, features, step_seconds
from pipelines.benchmarks.scale_model import Spread
from pipelines.errors import UserError

pytestmark = pytest.mark.timeout(200)
TRUE = Costs(message=150e-6, overhead=1.06, byte=0.8e-9, cast=1.1e-9, code=7e-9)
BUCKETS = (Bucket(300_000, ((64, 576), (128, 1152))), Bucket(400_000, ((256, 1152),)))
TINY = Size(width=4, classes=3, stem="cifar", resolution=16, batch_size=2, time_steps=1)
SIGNS = sum(each.signs for each in BUCKETS)
ONE = links.Steps(
    buckets=[(each.numbers, list(each.latent)) for each in BUCKETS],
    steps=[[0.1, 0.18, 0.2]] * 4,
    work={"fp32": [0.001], "bf16": [0.001 + 700_000 * 2e-9], "sign": [(700_000 - SIGNS) * 2e-9 + 6 * SIGNS * 5e-9]},
)


def _shaped(ranks, rate, learnt, off=1.0):
    """What ranks would measure if the model were true, but that everything took `off` times as long."""
    link, alone = TRUE.link(rate), ONE.profile()
    steps = {"buckets": ONE.buckets, "steps": [[ONE.steps[0], [0.05, 0.06, 0.2]]] * 3}  # one rank is ready before
    kinds = {}
    for kind in KINDS:
        exchange = float(np.dot(features(BUCKETS, kind, ranks, rate), astuple(TRUE)))
        cluster = scale.Cluster(ranks, 1, link, link)
        step = step_seconds(alone, kind, lambda b, k, c=cluster: scale.exchange_seconds(b, k, "ring", c, TRUE))
        kinds[kind] = {"bytes": 1, "exchange": [off * exchange] * 3, "step": [off * step] * 3}
    message = float(np.dot(features([Bucket(links.SMALL)], "fp32", ranks, rate), astuple(TRUE)))
    steps["message"] = [message] * 3
    return Shaped(ranks=ranks, rate_mbit=rate, crowd=1, fitted=learnt, kinds=kinds, **steps)


def _links(off=1.0):
    learnt = [_shaped(ranks, rate, True) for ranks in (2, 4) for rate in (50.0, 200.0)]
    return Links(processor="a processor", shaped=[*learnt, _shaped(3, 100.0, False, off)])


def test_the_model_is_held_against_what_it_was_not_fitted_on():
    costs = scale.fit(_links())
    assert astuple(costs) == pytest.approx(astuple(TRUE), rel=1e-6)
    rows = list(scale.checked(_links(off=1.25), costs))
    assert [row["name"] for row in rows] == [
        f"held out: {kind}, 3 ranks, 100 Mbit/s: {what}" for kind in KINDS for what in ("the exchange", "a step")
    ]
    assert [row["ratio"] for row in rows] == pytest.approx([0.8] * 6)


@pytest.fixture
def result(tmp_path, monkeypatch):
    monkeypatch.setattr(links, "profile_of", lambda size, steps, say: ONE)
    path = tmp_path / "given.json"
    links.save(_links(off=1.25), path)
    return scale.bench(links.load(path), 2, Size(), Inputs(), tmp_path / "out", lambda _: None)


def test_every_row_is_marked_as_simulated(result, tmp_path):
    json.dumps(result)
    assert result["simulated"] is True
    assert len(result["rows"]) == 6 + len(scale.WORKERS) * len(ALGORITHMS) * len(KINDS)
    for row in result["rows"]:
        assert {"name", "ours", "peer", "ratio", "unit", "simulated"} <= row.keys()
        assert row["simulated"] is True
    assert result["held_out_error"]["a step"] == pytest.approx({"median": 0.2, "largest": 0.2})
    rings = [row for row in result["rows"] if row["name"].endswith("workers, fp32, ring: a step")]
    assert [row["ratio"] for row in rings] == [1.0] * 4
    efficiency = [row["efficiency"] for row in rings]
    assert efficiency == sorted(efficiency, reverse=True)
    assert 0 < efficiency[-1] < efficiency[0] < 1
    assert rings[-1]["images_per_second"] == pytest.approx(1024 * 4 / (rings[-1]["ours"] / 1000))
    assert not (tmp_path / "out" / "links.json").exists(), "it was given"


def test_the_picture_says_that_it_is_simulated_and_of_what(result, tmp_path, monkeypatch):
    assert (tmp_path / "out" / "scale.png").read_bytes().startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(scale, "scaling", lambda *given: drawn.append(scaling(*given)) or drawn[-1])
    from pipelines.report.scaling import scaling

    model = Model(TRUE, ONE.profile(), Spread(0.05), Spread(0.0), 4)
    scale._drawn(model, Inputs(step_seconds=0.2), tmp_path / "again.png", result)
    figure = drawn[0]
    assert figure.get_suptitle().startswith("Simulated")
    assert all("simulated" in figure.axes[n].get_ylabel() for n in (0, 3))
    for word in ("supposed", "10 Gbit/s", "25 us", "8 workers a node", "held out 3 ranks, 100 Mbit/s", "20.0%"):
        assert word in figure.get_supxlabel(), word


def test_another_device_and_spread():
    model = scale.model_of(_links(), ONE, Inputs(step_seconds=0.02, spread=0.3))
    assert model.profile.compute == pytest.approx(0.02)
    assert model.profile.ready == pytest.approx((0.01, 0.018))
    assert model.costs.cast == pytest.approx(2e-10), "a tenth of the network's own"
    assert model.costs.code == pytest.approx(5e-10)
    assert model.costs.message == pytest.approx(TRUE.message)
    assert (model.steps, model.measured_ranks) == (Spread(0.3), 4)
    still = scale.model_of(_links(), ONE, Inputs(spread=0.0))
    assert still.step("fp32", "ring", 1, Inputs()) == pytest.approx(ONE.profile().compute), "one worker sends nothing"


@pytest.mark.parametrize("content", ["", "[]", '{"processor": "x", "shaped": []}', '{"more": 1}', "\xff\x00"])
def test_a_file_that_holds_no_links(content, tmp_path):
    path = tmp_path / "links.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"links\.json is no file of this version"):
        links.load(path)


def test_without_namespaces_it_says_what_to_do(monkeypatch, tmp_path, capsys):
    from pipelines import cli

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "scale", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--links FILE" in capsys.readouterr().err


def test_one_worker_is_measured():
    one = links.profile_of(TINY, 4, lambda _: None)
    assert len(one.steps) == 4
    assert set(one.work) == set(KINDS)
    costs = one.costs(TRUE)
    assert costs.code > 0
    assert (costs.message, costs.byte) == (TRUE.message, TRUE.byte)


@pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}")
def test_ranks_in_namespaces_are_measured(monkeypatch):
    monkeypatch.setattr(links, "MEASURED", TINY)
    measured = links.measure(2, "a processor", lambda _: None, [((2, 200.0), True)])
    shaped = measured.shaped[0]
    assert set(shaped.kinds) == set(KINDS)
    sizes = {kind: its.bytes for kind, its in shaped.kinds.items()}
    assert sizes["fp32"] > sizes["bf16"] > sizes["sign"] > 0
    numbers = sum(count for count, _ in shaped.buckets)
    assert sizes["fp32"] == pytest.approx(4 * numbers, rel=0.05)  # two ranks send each other half, and half back
    assert min(shaped.kinds["fp32"].exchange) > 8 * sizes["fp32"] / 200e6 * 0.8, "faster than its link"
    assert 0 < min(shaped.message) < 0.1
    assert [len(ranks) for ranks in shaped.steps] == [2, 2]
    assert all(step == sorted(step) and step[0] > 0 for ranks in shaped.steps for step in ranks)
    assert all(len(step) == len(shaped.buckets) + 1 for ranks in shaped.steps for step in ranks)
    assert Links.model_validate_json(measured.model_dump_json()) == measured
