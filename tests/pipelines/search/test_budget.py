import pytest

from pipelines.search.budget import Budget, Left
from pipelines.search.ledger import Ledger


@pytest.fixture
def clock():
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    return Clock()


def test_nothing_limits_a_search_but_its_trials(searched, ledger):
    budget = Budget(searched({"trials": 2}).tune, ledger)
    for stage in ("search", "full", "full"):
        ledger.draw({}, stage)
        ledger.record(ledger.next_number - 1, {"epoch": 1})
    assert budget.left() == Left(trials=1, epochs=None, seconds=None)
    assert not budget.stop_all()


def test_epochs_of_all_trials_count_those_of_earlier_drivers_too(store, searched, ledger):
    for number in (1, 2):
        ledger.draw({}, "search")
        ledger.record(number, {"epoch": 1})
    resumed = Ledger.load(store, searched())
    budget = Budget(searched({"epochs": 4}).tune, resumed)
    assert budget.left().epochs == 2
    resumed.record(2, {"epoch": 1})  # repeated: not twice
    resumed.record(1, {"epoch": 2})
    assert not budget.stop_all()
    resumed.record(2, {"epoch": 2})
    assert budget.stop_all()
    assert not budget("id", {"epoch": 2}), "the trials go on where the budget is raised"
    assert not Budget(searched({"epochs": 5}).tune, resumed).stop_all()


def test_hours_of_earlier_drivers_count(store, searched, ledger, clock):
    first = Ledger(store, ledger.search, clock=clock)
    clock.now += 3000
    first.draw({}, "search")
    clock.now += 10_000  # killed, and resumed later
    resumed = Ledger(store, ledger.search, Ledger.load(store, searched()).trials.values(), clock=clock)
    budget = Budget(searched({"hours": 1}).tune, resumed)
    assert budget.left().seconds == 600
    clock.now += 599
    assert not budget.stop_all()
    clock.now += 2
    assert budget.stop_all()
    assert budget.left().seconds == 0
