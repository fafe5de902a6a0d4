from types import SimpleNamespace

from pipelines.search.results import Outcome


def test_rungs_are_those_of_trials_that_max_steps_ends(searched):
    config = searched({}, optim={"epochs": 9, "max_steps": 20})  # of 8 steps an epoch
    data = SimpleNamespace(manifest=SimpleNamespace(splits={"train": SimpleNamespace(count=64)}))
    outcome = Outcome(config, data, ledger=None, stage="search", run=None)
    assert outcome.rungs == [1, 3]
