import math

import pytest

from pipelines.search.objectives import best, pareto_front, rank_correlation, rung_correlations, value_of
from pipelines.search.records import TrialRecord


def _trial(number, *top1, state="finished", **last):
    epochs = tuple({"epoch": epoch, "top1": value, **last} for epoch, value in enumerate(top1, 1))
    return TrialRecord(number=number, stage="search", values={}, state=state, epochs=epochs)


def test_the_last_epoch_counts_not_the_best():
    assert value_of(_trial(1, 0.1, 0.9, 0.4), "top1") == 0.4
    assert value_of(_trial(1, 0.1, **{"energy_mj/horowitz_45nm": 2.0}), "energy_mj") == 2.0
    assert value_of(_trial(1), "top1") is None
    assert value_of(_trial(1, 0.1), "sops") is None
    assert value_of(_trial(1, 0.1, math.nan), "top1") is None
    assert value_of(_trial(1, 0.1, state="failed"), "top1") is None


def test_a_finished_trial_beats_one_that_was_ended_early():
    early, late, alike = _trial(1, 0.9, state="pruned"), _trial(3, 0.1, 0.5), _trial(2, 0.1, 0.5)
    assert best([early, late, alike], "top1") == alike
    assert best([early, _trial(4, 0.1, 0.2, state="running")], "top1").number == 4
    assert best([_trial(1), _trial(2, 0.9, state="failed")], "top1") is None
    assert best([_trial(1, 0.5, sops=3), _trial(2, 0.5, sops=2)], "sops").number == 2


def test_the_front_holds_what_nothing_beats():
    trials = [
        _trial(1, 0.9, sops=100),
        _trial(2, 0.8, sops=50),
        _trial(3, 0.8, sops=60),
        _trial(4, 0.1, sops=1),
        _trial(5, 0.99, sops=1, state="pruned"),
        _trial(6, 0.99),
    ]
    assert [record.number for record in pareto_front(trials, ("top1", "sops"))] == [1, 2, 4]
    assert pareto_front([], ("top1", "sops")) == []


def test_ranks_that_agree_and_ranks_that_do_not():
    trials = [_trial(1, 1, 4, 1), _trial(2, 2, 5, 3), _trial(3, 3, 6, 2), _trial(4, 9, state="pruned")]
    rows = {(row.rung, row.later): row for row in rung_correlations(trials, (1, 2, 3), "top1")}
    assert rows[1, 2] == (1, 2, 3, pytest.approx(1), pytest.approx(1))
    assert rows[2, 3].n == 3
    assert rows[2, 3].spearman == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    assert rows[2, 3].kendall == pytest.approx(1 / 3)  # (2 - 1) / 3


@pytest.mark.parametrize("pairs", [[], [(1, 2)], [(1, 2), (1, 3)], [(1, None), (2, 3)]])
def test_too_little_says_nothing(pairs):
    assert rank_correlation(pairs)[1:] == (None, None)
