"""When a trial hangs, by a clock of the test's own."""

import pytest

from pipelines.search.signs import Signs


@pytest.fixture
def killed(monkeypatch):
    actors = []
    monkeypatch.setattr("pipelines.search.signs.ray.kill", actors.append)
    return actors


@pytest.fixture
def clock():
    return _Clock()


class _Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def signs(clock):
    signs = Signs(60, clock)
    signs.take(1, {"actor": "actor"})
    return signs


def _pulse(phase, since=0.0, rank=0):
    return {"pulse": {"rank": rank, "phase": phase, "since": since}}


def test_a_trial_that_never_begins_is_ended_once(signs, clock, killed):
    clock.now += 60
    signs.end_hung()
    assert killed == []
    clock.now += 1
    for _ in range(3):
        signs.end_hung()
    assert killed == ["actor"]
    assert signs.hung == {1: "hung: nothing new for 61 s in its phase 'start'"}


def test_time_in_a_phase_counts_from_its_begin(signs, clock, killed):
    clock.now += 50
    signs.take(1, _pulse("forward", since=1))
    clock.now += 50
    signs.end_hung()
    assert killed == []
    signs.take(1, _pulse("forward", since=58))
    clock.now += 3
    signs.end_hung()
    assert killed == ["actor"]
    assert signs.hung[1] == "hung: nothing new for 61 s in its phase 'forward'"


def test_a_process_that_stands_still_sends_no_pulse(signs, clock, killed):
    signs.take(1, _pulse("stage", since=0))
    clock.now += 61
    signs.end_hung()
    assert killed == ["actor"]


def test_staging_may_take_hours_and_who_has_ended_does_not_hang(signs, clock, killed):
    for _ in range(100):
        clock.now += 50
        signs.take(1, _pulse("stage", since=clock.now - 1000))
        signs.end_hung()
    signs.take(1, _pulse("end"))
    clock.now += 1e6
    signs.end_hung()
    assert killed == []


def test_ranks_that_wait_for_one_at_work_do_not_hang(signs, clock, killed):
    """Rank 1 waits for rank 0, which stages its data set, and is ended as soon as both stand still."""
    for _ in range(20):
        clock.now += 50
        signs.take(1, _pulse("stage", since=clock.now - 1000, rank=0))
        signs.take(1, _pulse("gather", since=clock.now - 1000, rank=1))
        signs.end_hung()
    signs.take(1, _pulse("load", since=0, rank=0))
    signs.take(1, _pulse("end", rank=2))
    clock.now += 60
    signs.end_hung()
    assert killed == []
    clock.now += 1
    signs.end_hung()
    assert killed == ["actor"]
    assert "'load'" in signs.hung[1]


def test_workers_that_start_anew_begin_anew(signs, clock, killed):
    signs.take(1, _pulse("load", since=59))
    signs.take(1, {"pulse": {"phase": "restart"}})
    clock.now += 60
    signs.end_hung()
    assert killed == []


def test_a_trial_that_is_tried_again_gets_a_fresh_sign(signs, clock, killed):
    clock.now += 61
    signs.end_hung()
    signs.take(1, _pulse("forward", since=1e6))  # a last word of the old one
    signs.take(1, {"actor": "another"})
    assert signs.hung == {}
    clock.now += 60
    signs.end_hung()
    assert killed == ["actor"]
    clock.now += 1
    signs.end_hung()
    assert killed == ["actor", "another"]


def test_only_the_one_that_hangs_is_ended(signs, clock, killed):
    signs.take(2, {"actor": "two"})
    signs.take(3, _pulse("forward", since=1e6))  # of whose actor nobody knows
    clock.now += 61
    signs.take(2, _pulse("forward"))
    signs.end_hung()
    assert (killed, list(signs.hung)) == (["actor"], [1])
    signs.forget(2)
    clock.now += 1e6
    signs.end_hung()
    assert killed == ["actor"]
