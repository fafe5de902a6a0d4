"""One trial, without Ray: what it tells, and which of its failures come again."""

import pytest

from pipelines.config import parse_config
from pipelines.errors import Fenced, ServiceError, UserError
from pipelines.on_ray.work import Work
from pipelines.search import trial


class _Context:
    current_actor = "the actor"


class _Queue(list):
    def put(self, item, block=True, timeout=None):
        self.append(item)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("no such data"), "UserError: no such data"),
        (MemoryError("of the GPU"), "out of memory: of the GPU"),
        (ServiceError("S3 is away"), None),  # not of these values: Ray Tune tries again
        (Fenced("overtaken"), None),
        (RuntimeError("a bug"), None),
    ],
)
def test_a_failure_that_the_same_values_would_meet_again_is_reported(tiny_tree, monkeypatch, error, said):
    trained, reports, told = [], [], _Queue()

    def fail(work, _in_population):
        trained.append(work)
        raise error

    monkeypatch.setattr(trial, "_train", fail)
    monkeypatch.setattr(trial.tune, "report", reports.append)
    monkeypatch.setattr(trial.ray, "get_runtime_context", _Context)
    work = Work(parse_config(tiny_tree, origin="tiny"), "search", "session", None, "0.1", told)
    suggestion = {"number": 7, "values": {"leak": 0.125}}
    if said is None:
        with pytest.raises(type(error)):
            trial.train_trial(suggestion, work)
        assert reports == []
    else:
        trial.train_trial(suggestion, work)
        assert reports[0]["failed"].startswith(said)
    assert told == [{"trial": 7, "item": {"actor": "the actor"}}]
    (its,) = trained
    assert (its.run_id, its.config.model.neuron.leak, its.config.tune) == ("search/trial-0007", 0.125, None)


def test_a_failure_of_workers_is_told_as_its_worker_told_it():
    class Failed(Exception):
        def __init__(self, failures):
            super().__init__("Training failed")
            self.worker_failures = failures

    assert trial._for_good(Failed({0: UserError("no"), 1: RuntimeError("x")})).startswith("UserError: no")
    assert trial._for_good(Failed({0: ServiceError("S3 is away")})) is None
    assert trial._for_good(Failed({})) is None
