"""Ray's schedulers over a ledger, driven as Ray's controller drives them."""

import math
from dataclasses import dataclass, field

import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pipelines.errors import UserError
from pipelines.search.ledger import Ledger
from pipelines.search.schedulers import build_scheduler, rungs

_STOP = TrialScheduler.STOP


@dataclass(frozen=True)
class _Trial:
    trial_id: str
    config: dict = field(compare=False)


class _Driver:
    """What Ray's controller and the launcher's callbacks do with a scheduler and a ledger."""

    def __init__(self, tune, ledger):
        self.ledger, self.scheduler = ledger, build_scheduler(tune, 9, ledger)
        self.trials = {}

    def add(self, number):
        if number > len(self.ledger.trials):
            self.ledger.draw({}, "search")
        self.trials[number] = _Trial(f"{id(self)}-{number}", {"number": number})
        self.scheduler.on_trial_add(None, self.trials[number])

    def report(self, number, epoch, top1):
        result = {"epoch": epoch, "top1": top1}
        stops = self.scheduler.on_trial_result(None, self.trials[number], result) == _STOP
        if stops or epoch == 9:
            self.ledger.record(number, result, ends_as="finished" if epoch == 9 else "pruned")
            self.scheduler.on_trial_complete(None, self.trials[number], result)
        else:
            self.ledger.record(number, result)
        return stops


def _train(driver, number, top1, *, epochs=range(1, 10)):
    """Report `top1` at each epoch until the scheduler ends it; how many epochs it got."""
    return next((epoch for epoch in epochs if driver.report(number, epoch, top1)), None)


@pytest.fixture
def resume(store, searched):
    def resume(tune):
        config = searched(tune)
        return _Driver(config.tune, Ledger.load(store, config))

    return resume


@pytest.fixture
def start(store, searched):
    def start(tune):
        config = searched(tune)
        return _Driver(config.tune, Ledger.create(store, config))

    return start


def _six(driver):
    for number, top1 in enumerate((0.5, 0.6, 0.4, 0.7, 0.55, 0.3), 1):
        driver.add(number)
        _train(driver, number, top1)


@pytest.mark.parametrize("tune", [{"scheduler": "asha"}, {"scheduler": "asha", "grace": 2}, {"scheduler": "median"}])
def test_a_resumed_scheduler_decides_as_if_it_had_gone_on(start, resume, tune):
    first = start(tune)
    _six(first)
    second = resume(tune)
    assert second.scheduler.debug_string().split("Bracket")[1:] == first.scheduler.debug_string().split("Bracket")[1:]
    if tune["scheduler"] == "median":
        noted = [list(driver.scheduler._results.values()) for driver in (first, second)]
        assert noted[0] == noted[1]
    for number, top1 in enumerate((0.2, 0.45, 0.52, 0.58, 0.65, 0.9), 7):
        for driver in (first, second):
            driver.add(number)
        assert _train(first, number, top1) == _train(second, number, top1)
    assert {record.state for record in first.ledger.trials.values()} == {"finished", "pruned"}


def test_asha_ends_what_is_worse_at_a_rung_of_an_earlier_driver(start, resume):
    tune = {"scheduler": "asha"}
    _six(start(tune))
    driver = resume(tune)
    driver.add(7)
    driver.add(8)
    assert driver.report(7, 1, 0.2)
    assert not driver.report(8, 1, 0.9)


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_trial_that_goes_on_keeps_its_rungs_and_does_not_compete_with_itself(start, resume, kind):
    tune = {"scheduler": kind, "reduction": 2}
    first = start(tune)
    for number, top1 in ((1, 0.5), (2, 0.4), (3, 0.45), (4, 0.6)):
        first.add(number)
        _train(first, number, top1, epochs=(1, 2))
    assert len(first.ledger.unfinished()) >= 2
    second = resume(tune)
    for record in second.ledger.unfinished():
        second.add(record.number)
    live = first.scheduler.debug_string().split("Bracket")[1:]
    assert second.scheduler.debug_string().split("Bracket")[1:] == live
    if kind == "median":
        assert len(second.scheduler._results) == len(first.scheduler._results) == 4
    # from the checkpoint of epoch 1: what it repeats, it is not judged by again
    assert not second.report(4, 2, 0.0)
    assert second.scheduler.debug_string().split("Bracket")[1:] == live
    assert first.report(4, 3, 0.6) == second.report(4, 3, 0.6)


def test_a_trial_that_starts_again_is_told_once(start):
    driver = start({"scheduler": "median"})
    driver.add(1)
    driver.report(1, 1, 0.5)
    driver.scheduler.on_trial_error(None, driver.trials[1])
    driver.scheduler.on_trial_add(None, driver.trials[1])
    driver.report(1, 1, 0.5)
    driver.report(1, 2, 0.6)
    assert [each["epoch"] for each in driver.scheduler._results[driver.trials[1]]] == [1, 2]


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_what_is_not_finite_ends_its_trial_and_no_other(start, resume, kind):
    tune = {"scheduler": kind}
    driver = start(tune)
    for number in range(1, 6):
        driver.add(number)
        assert driver.report(number, 1, math.nan)
    for each in (driver, resume(tune)):
        each.add(6)
        assert not each.report(6, 1, 0.1)


def test_a_failed_trial_stays_at_the_rungs_that_it_reached(start, resume):
    first = start({})
    first.add(1)
    first.report(1, 1, 0.5)
    first.ledger.end(1, "failed", "crash")
    assert "Iter 1.000: 0.5" in resume({}).scheduler.debug_string()


def test_less_is_better_where_it_is(searched, ledger):
    scheduler = build_scheduler(searched({"objectives": ["sops", "top1"]}).tune, 9, ledger)
    for number, sops in ((1, 100), (2, 300), (3, 50)):
        ledger.draw({}, "search")
        trial = _Trial(str(number), {"number": number})
        scheduler.on_trial_add(None, trial)
        decision = scheduler.on_trial_result(None, trial, {"epoch": 1, "top1": 0.5, "sops": sops})
        assert (decision == _STOP) == (sops == 300)


def test_another_stage_is_not_compared_with(searched, ledger):
    ledger.draw({}, "proxy")
    ledger.record(1, {"epoch": 1, "top1": 0.99}, ends_as="finished")
    assert "0.99" not in build_scheduler(searched().tune, 9, ledger).debug_string()
    assert "0.99" in build_scheduler(searched().tune, 9, ledger, "proxy").debug_string()


def test_rungs(searched, ledger):
    assert rungs(searched().tune, 9) == [1, 3, 9]
    assert rungs(searched({"grace": 2, "reduction": 1.5}).tune, 10) == [2, 3, 5, 7, 10]
    assert rungs(searched().tune, 1) == [1]
    assert type(build_scheduler(searched({"scheduler": "none"}).tune, 9, ledger)) is FIFOScheduler


def test_a_grace_past_the_end_is_refused(searched, ledger):
    with pytest.raises(UserError, match="grace=5 is past the 4 epochs"):
        build_scheduler(searched({"grace": 5}).tune, 4, ledger)
