"""The trials' runs in a real MLflow: all that was logged is there, once, whatever MLflow refuses meanwhile."""

import threading

import pytest
import yaml

from pipelines.errors import ServiceError
from pipelines.search import children as module
from pipelines.search.children import STATE_TAG, Children
from pipelines.tracking import runs as tracking
from pipelines.tracking.journal import Journal

VALUES = {"leak": 0.25, "method": "agmm"}


class DirectJournal:
    """Writes to MLflow at once, without the process that a real one starts."""

    client = None

    def __init__(self, run_id, session, uri, say):
        assert self.client.get_run(run_id).data.tags[tracking.SESSION_TAG] == session, "the run is another session's"
        self.run_id = run_id

    def log(self, row, step):
        for key, value in row.items():
            self.client.log_metric(self.run_id, key, value, step=step)

    def tag(self, key, value):
        self.client.set_tag(self.run_id, key, value)

    def close(self, status, cause="", *, wait_s):
        tracking.close_run(self.client, self.run_id, status, cause)
        return True


@pytest.fixture
def direct(monkeypatch, client):
    monkeypatch.setattr(DirectJournal, "client", client)
    monkeypatch.setattr(module, "Journal", DirectJournal)
    monkeypatch.setattr(module, "_AGAIN_S", 0.0)


@pytest.fixture
def config(tiny_config, client):
    assert tiny_config.tracking.uri == client.tracking_uri
    return tiny_config


@pytest.fixture
def said():
    return []


@pytest.fixture
def children(client, ledger, said):
    for _ in range(3):
        ledger.draw(VALUES, "search")
    return Children(client, "the-parent", ledger.name_run, said.append)


def _run(client, ledger, number=1):
    return client.get_run(ledger.trials[number].run_id)


def _history(client, ledger, key, number=1):
    history = client.get_metric_history(ledger.trials[number].run_id, key)
    return [(metric.step, metric.value) for metric in sorted(history, key=lambda metric: metric.step)]


def _refuse(monkeypatch, name, times):
    """Have a function of `tracking.runs` fail so often, then work."""
    works, left = getattr(tracking, name), [times]

    def refused(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise ServiceError("MLflow is away")
        return works(*args, **kwargs)

    monkeypatch.setattr(tracking, name, refused)
    return left


def test_a_trial_is_a_run_below_the_search(children, client, ledger, config):
    """With the journal and the process that sends for it, as in a search; rows come from another thread."""
    with children.written():
        children.open(1, config, VALUES)
        rows = [threading.Thread(target=children.log, args=(1, {"val/top1": step / 10}, step)) for step in range(8)]
        for row in rows:
            row.start()
        for row in rows:
            row.join()
        children.close(1, "finished")
    assert module.Journal is Journal
    run = _run(client, ledger)
    tags = run.data.tags
    assert (tags["mlflow.parentRunId"], tags["agmm.trial"], tags[STATE_TAG]) == ("the-parent", "1", "finished")
    assert (tags["agmm.drawn.leak"], tags["agmm.drawn.method"]) == ("0.25", "agmm")
    assert run.data.params["model.neuron.leak"] == str(config.model.neuron.leak)
    assert yaml.safe_load(tracking.logged_config(run)) == config.model_dump(mode="json")
    assert run.info.status == "FINISHED"
    assert _history(client, ledger, "val/top1") == [(step, step / 10) for step in range(8)]


@pytest.mark.parametrize(
    ("state", "cause", "status", "told"),
    [
        ("finished", "", "FINISHED", None),
        ("pruned", "ended by asha after epoch 1", "FINISHED", "ended by asha after epoch 1"),
        ("failed", "NotFinite: nan", "FAILED", "NotFinite: nan"),
        ("running", "the budget was used up", "KILLED", "the budget was used up"),
    ],
)
def test_a_run_ends_as_its_trial(direct, children, client, ledger, config, state, cause, status, told):
    with children.written():
        children.open(1, config, VALUES)
        children.close(1, state, cause)
        children.close(1, "failed", "again")  # nothing: it has ended
        children.log(1, {"late": 1.0}, 1)
    run = _run(client, ledger)
    assert (run.info.status, run.data.tags.get("agmm.cause"), run.data.tags[STATE_TAG]) == (status, told, state)
    assert "late" not in run.data.metrics


@pytest.mark.parametrize("refuses", ["create_run", "describe_run"])
def test_what_mlflow_refuses_at_first_is_not_lost(direct, children, client, ledger, config, monkeypatch, said, refuses):
    _refuse(monkeypatch, refuses, 2)
    with children.written():
        children.open(1, config, VALUES)
        for step in range(4):
            children.log(1, {"loss": float(step)}, step)
        children.close(1, "finished")
    assert len(said) == 2
    assert all("trial 1 is not in MLflow yet" in line for line in said)
    assert _history(client, ledger, "loss") == [(step, float(step)) for step in range(4)]
    run = _run(client, ledger)
    assert run.info.status == "FINISHED"
    assert yaml.safe_load(tracking.logged_config(run))["name"] == "tiny"
    assert len(client.search_runs([run.info.experiment_id])) == 1


def test_rows_wait_for_an_mlflow_that_comes_back_at_the_end_only(
    direct, children, client, ledger, config, monkeypatch, said
):
    monkeypatch.setattr(module, "_AGAIN_S", 3600.0)
    left = _refuse(monkeypatch, "create_run", 1)
    with children.written():
        children.open(1, config, VALUES)
        children.log(1, {"loss": 1.0}, 1)
        children.close(1, "pruned", "asha")
    assert left == [0]
    assert _history(client, ledger, "loss") == [(1, 1.0)]
    assert _run(client, ledger).data.tags[STATE_TAG] == "pruned"


def test_an_ended_trial_is_not_forgotten_while_mlflow_is_away(
    direct, children, client, ledger, config, monkeypatch, said
):
    """Two trials end, MLflow comes back, and a third one's end has all three written."""
    monkeypatch.setattr(module, "_AGAIN_S", 3600.0)
    _refuse(monkeypatch, "create_run", 4)
    with children.written():
        for number in (1, 2):
            children.open(number, config, VALUES)
            children.log(number, {"loss": 1.0}, 1)
            children.close(number, "finished")
        children.open(3, config, VALUES)
        children.close(3, "failed", "crash")
    states = [_run(client, ledger, number).info.status for number in (1, 2, 3)]
    assert states == ["FINISHED", "FINISHED", "FAILED"]
    assert [_history(client, ledger, "loss", number) for number in (1, 2)] == [[(1, 1.0)]] * 2


def test_what_mlflow_never_took_is_named(direct, children, ledger, config, monkeypatch, said):
    _refuse(monkeypatch, "create_run", 100)
    with children.written():
        for number in (1, 2):
            children.open(number, config, VALUES)
            children.close(number, "finished")
    assert said[-1] == "MLflow has not taken the runs of trials 1, 2: --resume makes them from the ledger"
    assert [ledger.trials[number].run_id for number in (1, 2)] == [None, None]


def test_a_resumed_trial_goes_on_in_its_run(direct, children, client, ledger, config):
    with children.written():
        children.open(1, config, VALUES)
        children.log(1, {"loss": 1.0}, 1)
    first = ledger.trials[1].run_id
    assert _run(client, ledger).info.status == "KILLED"
    again = Children(client, "the-parent", ledger.name_run, pytest.fail)
    with again.written():
        again.open(1, config, VALUES, first)
        again.open(1, config, VALUES, first)  # tried again
        again.log(1, {"loss": 0.5}, 2)
        again.close(1, "finished")
    assert ledger.trials[1].run_id == first
    assert _history(client, ledger, "loss") == [(1, 1.0), (2, 0.5)]
    run = _run(client, ledger)
    assert (run.info.status, run.data.tags.get("agmm.cause")) == ("FINISHED", None)
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ServiceError])
def test_runs_that_are_open_at_the_end_are_killed(direct, children, client, ledger, config, error):
    def work():
        with children.written():
            children.open(1, config, VALUES)
            raise error

    with pytest.raises(error):
        work()
    run = _run(client, ledger)
    assert (run.info.status, run.data.tags[STATE_TAG]) == ("KILLED", "running")
    assert not [thread for thread in threading.enumerate() if thread.name == "trials in MLflow"]


def test_an_error_in_one_thing_does_not_stop_the_others(direct, children, client, ledger, config, monkeypatch, said):
    def broken(self, row, step):
        if step == 1:
            raise RuntimeError("no such row")
        works(self, row, step)

    works = DirectJournal.log
    monkeypatch.setattr(DirectJournal, "log", broken)
    with children.written():
        children.open(1, config, VALUES)
        for step in range(3):
            children.log(1, {"loss": 1.0}, step)
        children.close(1, "finished")
    assert said == ["a trial could not be written to MLflow: RuntimeError: no such row"]
    assert [step for step, _ in _history(client, ledger, "loss")] == [0, 2]
    assert _run(client, ledger).info.status == "FINISHED"


def test_a_ledger_that_is_away_gets_the_run_later(direct, client, ledger, config, said):
    ledger.draw(VALUES, "search")
    left = [2]

    def name_run(number, run_id):
        if left[0]:
            left[0] -= 1
            raise ServiceError("S3 is away")
        ledger.name_run(number, run_id)

    children = Children(client, "the-parent", name_run, said.append)
    with children.written():
        children.open(1, config, VALUES)
        children.log(1, {"loss": 1.0}, 1)
        children.close(1, "finished")
    assert _run(client, ledger).info.status == "FINISHED"
    assert len(said) == 2
