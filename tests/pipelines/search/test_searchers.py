import math

import pytest
from ray.tune.search import Searcher

from pipelines.search.budget import Budget
from pipelines.search.ledger import Ledger
from pipelines.search.searchers import Numbered, build_draw, given_draw


def _searcher(config, ledger, stage="search"):
    return Numbered(ledger, build_draw(config, ledger, stage), Budget(config.tune, ledger), config.tune.trials, stage)


def _quality(values):
    return 1 - (values["leak"] - 0.8) ** 2


def _run(ledger, suggestion, ends_as="finished"):
    """Three epochs, the last of which has the trial's quality."""
    number, top1 = suggestion["number"], _quality(suggestion["values"])
    ledger.start(number)
    for epoch, share in ((1, 0.5), (2, 0.8), (3, 1.0)):
        ledger.record(number, {"epoch": epoch, "top1": share * top1, "sops": 100 * suggestion["values"]["threshold"]})
    ledger.end(number, ends_as)


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_a_resumed_search_gives_what_was_left_and_then_new_trials(store, searched, ledger, kind):
    config = searched({"trials": 5, "searcher": kind})
    first = _searcher(config, Ledger.load(store, searched()) if kind == "random" else ledger)
    given = [first.suggest(f"id{number}") for number in range(3)]
    assert [each["number"] for each in given] == [1, 2, 3]
    assert first.number_of("id1") == 2
    _run(first._ledger, given[0])

    resumed = _searcher(config, Ledger(store, ledger.search, first._ledger.trials.values()))
    assert [resumed.suggest(f"new{number}") for number in range(2)] == given[1:]
    assert [resumed.suggest("a")["number"], resumed.suggest("b")["number"]] == [4, 5]
    assert resumed.suggest("c") == Searcher.FINISHED
    assert resumed.number_of("new0") == 2


def test_a_draw_is_in_the_store_before_it_is_given(store, searched, ledger):
    suggestion = _searcher(searched(), ledger).suggest("id")
    assert Ledger.load(store, searched()).trials[1].values == suggestion["values"]


def test_random_draws_do_not_depend_on_what_was_pruned(tmp_path, searched):
    from pipelines.storage import FolderStore

    drawn = []
    for ending in ("finished", "pruned"):
        ledger = Ledger.create(FolderStore(tmp_path / ending), searched())
        searcher = _searcher(searched({"trials": 6}), ledger)
        for number in range(6):
            suggestion = searcher.suggest(f"id{number}")
            _run(ledger, suggestion, ending)
        drawn.append([record.values for record in ledger.trials.values()])
    assert drawn[0] == drawn[1]


def test_a_budget_that_is_used_up_ends_the_draws(searched, ledger):
    config = searched({"epochs": 3})
    searcher = _searcher(config, ledger)
    _run(ledger, searcher.suggest("a"))
    assert searcher.suggest("b") == Searcher.FINISHED


@pytest.mark.parametrize("objectives", [["top1"], ["top1", "sops"]])
def test_tpe_goes_where_it_is_better_and_resumes_as_if_never_killed(store, searched, objectives):
    config = searched({"trials": 40, "searcher": "tpe", "objectives": objectives})
    ledger = Ledger.create(store, config)
    searcher = _searcher(config, ledger)
    for number in range(39):
        _run(ledger, searcher.suggest(f"id{number}"), "finished" if number % 3 else "pruned")
    resumed = _searcher(config, Ledger.load(store, config)).suggest("after")
    assert resumed["values"] == _searcher(config, ledger)._draw(40)
    leaks = [record.values["leak"] for record in ledger.trials.values()]
    if len(objectives) == 1:
        late = leaks[-15:]
        assert sum(abs(leak - 0.8) for leak in late) / len(late) < 0.15  # 0.34 for random ones
    assert len(set(leaks)) == 39, "the random start is not repeated"


def test_trials_that_fail_or_report_nonsense_do_not_stop_tpe(searched, ledger):
    config = searched({"trials": 30, "searcher": "tpe"})
    searcher = _searcher(config, ledger)
    for step in range(25):
        suggestion = searcher.suggest(f"id{step}")
        number = suggestion["number"]
        if step % 5 == 1:
            ledger.end(number, "failed", "crash")
        elif step % 5 == 2:
            ledger.record(number, {"epoch": 1, "top1": math.nan}, ends_as="failed")
        elif step % 5 == 3:
            ledger.record(number, {"epoch": 1, "top1": math.nan}, ends_as="finished" if step % 2 else "pruned")
        elif step % 5 == 4:
            _run(ledger, suggestion)
    assert len({str(record.values) for record in ledger.trials.values()}) == 25


def test_tpe_takes_every_kind_of_field(store, searched):
    space = {
        "leak": {"uniform": [0.1, 0.7], "step": 0.2},
        "lr": {"loguniform": [0.001, 1]},
        "time_steps": {"uniform": [1, 4]},
        "weight_decay": {"choice": [0, 0.0001]},
        "method": {"choice": ["agmm", "vanilla"]},
    }
    config = searched({"trials": 16, "searcher": "tpe", "space": space})
    Ledger.create(store, config)
    for step in range(14):
        searcher = _searcher(config, Ledger.load(store, config))  # killed after each
        _run(searcher._ledger, searcher.suggest(f"id{step}"))
    found = Ledger.load(store, config).trials
    assert len(found) == 14
    assert all(record.state == "finished" for record in found.values())


def test_the_best_of_a_proxy_are_given_in_order(searched, ledger):
    budget = Budget(searched({"trials": 1}).tune, ledger)
    ledger.draw({"leak": 0.1}, "proxy")
    values = [{"leak": 0.1}, {"leak": 0.2}]
    searcher = Numbered(ledger, given_draw(ledger, values, "full"), budget, 2, "full")
    assert [searcher.suggest(each) for each in "ab"] == [
        {"number": 2, "values": values[0]},
        {"number": 3, "values": values[1]},
    ]
    assert searcher.suggest("c") == Searcher.FINISHED
