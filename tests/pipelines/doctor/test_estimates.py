"""The sums of memory and hours, and that the line of memory is the truth at a batch that was not measured."""

import pytest

from pipelines.config import parse_config
from pipelines.doctor import hours, memory, room, trial
from pipelines.doctor.trial import Timing


def _config(tree, **run):
    return parse_config({**tree, "run": {**tree["run"], **run}}, origin="tiny")


def _node(cpus, free=10**9, name="here"):
    return {"node": name, "resources": {"CPU": float(cpus)}, "look": {"memory": free}}


def test_a_line_goes_through_both_batches():
    line = memory.line_through(100.0, [(2, 140.0), (8, 200.0)], image_bytes=5.0)
    assert line == (120.0, 15.0)
    assert line.at(10) == 270.0
    assert (line.most(270.0), line.most(50.0)) == (10, 0)


def test_one_batch_gives_what_it_can():
    assert memory.line_through(100.0, [(1, 140.0)], image_bytes=0.0) == (100.0, 40.0)


@pytest.mark.slow
@pytest.mark.parametrize("images", [96])
def test_the_line_is_true_of_a_larger_batch(tiny_tree, images):
    """24 MB of activations and more an image, beside which what else a process holds is small."""
    config = parse_config(
        {**tiny_tree, "data": {**tiny_tree["data"], "resolution": 64}, "model": {**tiny_tree["model"], "width": 16}},
        origin="tiny",
    )
    found = trial.run("memory", config, limit_s=120, batches=[2, 8, images])
    *small, (_, truth) = found["peaks"]
    predicted = memory.line_through(found["base"], small, image_bytes=0.0).at(images)
    assert truth - found["base"] > 300e6
    assert (predicted - found["base"]) / (truth - found["base"]) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("workers", "cpus", "free", "status", "largest"),
    [
        (1, 2, 10**9, "pass", 85),  # (0.95e9 - 1e8) / 1e7
        (1, 2, 2 * 10**8, "fail", 9),
        (2, 2, 10**9, "pass", 74),  # two of (0.475e9 - 1e8) / 1e7
        (2, 1, 10**9, "pass", 170),  # one to a node
    ],
)
def test_workers_that_may_share_a_node_share_its_memory(tiny_tree, monkeypatch, workers, cpus, free, status, largest):
    found = {
        "device": "cpu",
        "base": 5e7,
        "peaks": [[2, 1.2e8], [8, 1.8e8]],
        "free": None,
        "weights": 0,
        "optimizer": 0,
    }
    monkeypatch.setattr(trial, "run", lambda *_, **__: found)
    monkeypatch.setattr(memory, "_image_bytes", lambda _: 0.0)
    nodes = [_node(cpus, 10**12, "large"), _node(cpus, free, "small")]
    got, detail, _ = memory.memory(_config(tiny_tree, workers=workers), nodes, lambda _: None)
    assert got == status
    assert f"data.batch_size up to {largest} fits" in detail
    assert "small has" in detail


@pytest.mark.slow
def test_a_worker_that_cannot_be_built_says_why(tiny_tree):
    config = parse_config({**tiny_tree, "model": {**tiny_tree["model"], "arch": "agmm_vggsnn"}}, origin="tiny")
    with pytest.raises(Exception, match="VGGSNN has no stem to choose"):
        trial.run("memory", config, limit_s=120, batches=[2])


def test_a_trial_ends_in_time(tiny_config):
    with pytest.raises(Exception, match="not done after"):
        trial.run("memory", tiny_config, limit_s=0.2, batches=[2])


def test_copies_count_once_there_are_several_workers(tiny_tree):
    """A checkpoint's copy of weights and momentum; and DDP's of the gradients."""
    found = {"device": "cpu", "weights": 3, "optimizer": 2}
    assert memory._beside(_config(tiny_tree), found) == 5
    assert memory._beside(_config(tiny_tree, workers=2), found) == 8
    assert memory._beside(_config(tiny_tree), {**found, "device": "cuda"}) == 0


@pytest.mark.parametrize(
    ("workers", "cpus", "own", "status", "words"),
    [
        (2, [2, 2], False, "pass", "room for 4"),
        (5, [2, 2], False, "fail", "room for 4 of at least 5"),
        ([1, 5], [2, 2], False, "pass", "room for 4"),
        (4, [2], True, "warn", "4 workers of 1 core share 2 cores"),
    ],
)
def test_room_for_workers(tiny_tree, workers, cpus, own, status, words):
    got, detail, _ = room.workers(_config(tiny_tree, workers=workers), [_node(each) for each in cpus], own_ray=own)
    assert got == status
    assert words in detail


def test_hours_and_price_by_hand(tiny_tree):
    """4 epochs of 4 steps of 12 images of 48; 21 images validated each time; one second a step at first, then two."""
    timing = Timing("cpu", [1.0, 1.0, 2.0, 2.0], validation=21.0, peak=1)
    config = _config(tiny_tree)
    found = hours.cost(config, timing, 48, 21, efficiency=0.5, price_per_hour=(1.0, 3.0))
    assert found.hours == pytest.approx(((16 * 1 + 4) / 3600, (16 * 2 + 4) / 3600))  # one worker: no efficiency
    assert found.price == pytest.approx((20 / 3600, 3 * 36 / 3600))
    both = hours.cost(_config(tiny_tree, workers=2), timing, 48, 21, efficiency=0.5, price_per_hour=(1.0, 3.0))
    assert both.hours == pytest.approx(((16 * 1 + 2) / 3600, (16 * 2 + 2) * 2 / 3600))
    assert both.price == pytest.approx((2 * 18 / 3600, 2 * 3 * 68 / 3600))


def test_few_workers_of_a_range_take_longer(tiny_tree):
    timing = Timing("cpu", [1.0], validation=21.0, peak=1)
    found = hours.cost(_config(tiny_tree, workers=[1, 2]), timing, 48, 21, efficiency=1.0, price_per_hour=None)
    assert found.hours.high == pytest.approx(2 * found.hours.low)
    assert found.price is None
