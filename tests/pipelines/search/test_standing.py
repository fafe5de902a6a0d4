"""Where a search stands, by hand, with a clock of the test's own."""

import math

import pytest

from pipelines.search import standing as module
from pipelines.search.budget import Budget
from pipelines.search.ledger import Ledger
from pipelines.search.standing import Standings


class _Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def stand(searched, store, clock):
    """A function from a `tune` section to a ledger, whose clock is the test's, and its standings."""

    def make(objective="top1", limit=4, **tune):
        config = searched(tune)
        ledger = Ledger(store, Ledger.create(store, config).search, clock=clock.monotonic)
        budget = Budget(config.tune, ledger)
        return ledger, Standings(ledger, budget, "search", limit=limit, epochs=9, objective=objective)

    return make


def _trial(ledger, epochs=(), state=None, **metrics):
    number = ledger.draw({"leak": 0.25}, "search").number
    ledger.start(number)
    for epoch in epochs:
        ledger.record(number, {"epoch": epoch, "top1": epoch / 10 + number / 100} | metrics)
    if state:
        ledger.end(number, state)
    return number


def test_before_anything_is_known(stand):
    _, standings = stand(trials=4)
    now = standings.now()
    assert (now.ended, now.trials, now.best, now.budget, now.eta, now.rows) == (0, 4, "", "4 trials to start", None, [])


def test_the_eta_counts_epochs_to_come_as_long_as_those_of_the_ended(stand, clock):
    """Two ended after 3 epochs on average, one is in its 2nd, one is to come: 1 + 3 epochs, at 8 epochs in 40 s."""
    ledger, standings = stand()
    clock.now += 40
    _trial(ledger, range(1, 6), "finished")
    _trial(ledger, range(1, 2), "pruned")
    _trial(ledger, range(1, 3))
    assert standings.now().eta == pytest.approx(4 * 40 / 8)


def test_a_budget_ends_a_search_before_its_trials_do(stand, clock):
    ledger, standings = stand(epochs=10, hours=100 / 3600)
    clock.now += 40
    _trial(ledger, range(1, 6), "finished")
    _trial(ledger, range(1, 2), "pruned")
    _trial(ledger, range(1, 3))
    now = standings.now()
    assert now.eta == pytest.approx(2 * 40 / 8)
    assert now.budget == "1 trials to start, 2 epochs, 0:01:00"
    clock.now += 59  # one more epoch at this pace would take 22 s
    assert standings.now().eta == pytest.approx(1)


def test_what_an_earlier_driver_did_does_not_count_into_the_pace(stand, clock, searched):
    ledger, _ = stand()
    _trial(ledger, range(1, 10), "finished")
    resumed = Standings(ledger, Budget(searched({}).tune, ledger), "search", limit=2, epochs=9, objective="top1")
    clock.now += 10
    assert resumed.now().eta is None
    _trial(ledger, [1])
    assert resumed.now().eta == pytest.approx(8 * 10)


def test_a_limit_that_was_lowered_leaves_nothing_to_start(stand, clock):
    ledger, standings = stand(limit=1)
    clock.now += 10
    for _ in range(3):
        _trial(ledger, [1, 2], "finished")
    assert standings.now().budget == "0 trials to start"
    assert standings.now().eta == 0


def test_the_best_is_named_with_its_values(stand):
    ledger, standings = stand()
    _trial(ledger, [1, 2], "finished")
    _trial(ledger, [1, 2], "finished")
    _trial(ledger, [1, 2, 3], "failed")
    assert standings.now().best == "top1 0.22, trial 2 (leak 0.25)"


def test_an_objective_that_is_to_be_small(stand):
    ledger, standings = stand(objective="energy_mj", objectives=["energy_mj"])
    for energy in (3e-4, 2e-4):
        number = _trial(ledger, [1], "finished", **{"energy_mj/horowitz_45nm": energy})
    assert standings.now().best == "energy_mj 0.0002, trial 2 (leak 0.25)"
    assert standings.value_of(ledger.trials[number]) == "energy_mj 0.0002"


def test_rows_are_of_the_running_with_what_they_told_last(stand):
    ledger, standings = stand()
    for state in ("finished", None, None):
        _trial(ledger, [1, 2], state)
    ledger.record(3, {"epoch": 3, "top1": math.nan})
    for number in (1, 2):
        standings.progress(number, {"images_per_second": 1.0, "eta": 2.0})
    standings.progress(2, {"images_per_second": 10.0, "eta": 20.0})
    two, three = standings.now().rows
    assert (two.number, two.epoch, two.value, two.speed, two.eta) == (2, 2, 0.22, 10.0, 20.0)
    assert (three.number, three.epoch, three.speed, three.eta) == (3, 3, None, None)
    assert math.isnan(three.value)
    standings.forget(2)
    assert standings.now().rows[0].speed is None
