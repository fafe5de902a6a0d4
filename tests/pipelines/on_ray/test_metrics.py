"""What operators are told, from the items that a board has; `record` here is a list."""

import pytest

from pipelines.loop.pulse import CACHE_BYTES, Pulse
from pipelines.on_ray.board import Board
from pipelines.on_ray.metrics import METRICS, Operators, exported_name
from pipelines.on_ray.watchdog import RESTART


@pytest.fixture
def told():
    return []


@pytest.fixture
def operators(told):
    return Operators(lambda name, value, tags: told.append((name, value, dict(tags))))


def _last(told, name):
    return [(value, tags) for known, value, tags in told if known == name][-1]


class _Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_row_of_training_and_one_of_validation(operators, told):
    row = {"train/loss": 0.5, "train/top1": 0.25, "train/mfu": 0.1, "train/images_per_second": 8.0, "time/load": 1.0}
    operators.row({"metrics": row, "step": 20})
    operators.row({"metrics": {"val/top1": 0.75, "flips/total": 0.1}, "step": 24})
    assert sorted(told) == [
        ("agmm_images_per_second", 8.0, {}),
        ("agmm_loss", 0.5, {}),
        ("agmm_mfu", 0.1, {}),
        ("agmm_step", 20, {}),
        ("agmm_step", 24, {}),
        ("agmm_top1", 0.25, {}),
        ("agmm_val_top1", 0.75, {}),
    ]


def test_a_failed_checkpoint_is_no_checkpoint(operators, told):
    operators.tag({"tag": "agmm.checkpoint", "value": "the checkpoint of step 4 could not be stored: a full disk"})
    operators.tag({"tag": "agmm.watchdog", "value": "attempt-"})
    assert told == []
    operators.tag({"tag": "agmm.checkpoint", "value": "attempt-0002-step-000000004"})
    operators.tag({"tag": "agmm.attempt", "value": "2"})
    assert [name for name, _, _ in told] == ["agmm_checkpoint_timestamp_seconds", "agmm_attempt"]
    assert told[1][1] == 2


def test_seconds_by_phase_are_counted_once_whatever_pulses_are_lost(operators, told):
    clock = _Clock()
    pulses = [Pulse(rank, clock) for rank in (0, 1)]
    for seconds in (2.0, 3.0):
        for pulse in pulses:
            pulse.phase("forward", 1)
        clock.now += seconds
        for pulse in pulses:
            operators.pulse({"pulse": pulse.item()})
    pulses[1].phase("exchange")
    clock.now += 1.0
    pulses[1].item()  # is lost
    clock.now += 4.0
    operators.pulse({"pulse": pulses[1].item()})
    counted = [(tags, value) for name, value, tags in told if name == "agmm_phase_seconds"]
    assert sum(value for tags, value in counted if tags == {"rank": "0", "phase": "forward"}) == 5.0
    assert sum(value for tags, value in counted if tags == {"rank": "1", "phase": "exchange"}) == 5.0
    assert all(value > 0 for _, value in counted)


def test_workers_are_those_that_live(operators, told):
    pulses = [Pulse(rank) for rank in (0, 1, 2)]
    for pulse in pulses:
        operators.pulse({"pulse": pulse.item()})
    assert _last(told, "agmm_workers") == (3, {})
    operators.pulse(RESTART)
    again = Pulse(0)
    again.notes[CACHE_BYTES] = 4096.0
    operators.pulse({"pulse": again.item()})
    assert _last(told, "agmm_workers") == (1, {})
    assert _last(told, "agmm_data_cache_bytes")[0] == 4096.0
    again.phase("end")
    operators.pulse({"pulse": again.item()})
    assert _last(told, "agmm_workers") == (0, {})


def test_names_are_as_prometheus_has_them():
    assert exported_name("agmm_loss") == "ray_agmm_loss"
    assert exported_name("agmm_phase_seconds") == "ray_agmm_phase_seconds_total"
    assert all(kind.what for kind in METRICS.values())


def test_a_board_tells_both_listeners_of_a_kind():
    watched, heard = Board(), []
    watched.listen("pulse", lambda item: heard.append(("first", item)))
    watched.listen("pulse", lambda item: heard.append(("second", item)))
    watched.take({"pulse": 1}, pytest.fail)
    assert heard == [("first", {"pulse": 1}), ("second", {"pulse": 1})]
