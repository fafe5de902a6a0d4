"""A run's states in MLflow, without workers."""

import pytest

from pipelines import tracking
from pipelines.config import parse_config
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.lifecycle import tracked


@pytest.fixture
def client(tiny_config):
    return tracking.connect(tiny_config.tracking.uri)


@pytest.fixture
def opened(client, tiny_tree, tiny_data):
    """`tracked` for the tiny recipe with changes of `optim`."""

    def call(*, resume=False, **optim):
        config = parse_config({**tiny_tree, "optim": {**tiny_tree["optim"], **optim}}, origin="test")
        return tracked(client, config, load_manifest(tiny_data), resume=resume, say=lambda _: None)

    return call


def _state(client, run_id):
    run = client.get_run(run_id)
    return run.info.status, run.data.tags.get("agmm.cause")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KeyboardInterrupt(), ("KILLED", "SIGINT (Ctrl-C)")),
        (RuntimeError("broken"), ("FAILED", "RuntimeError: broken")),
    ],
)
def test_a_run_ends_as_its_work_ends_and_can_be_taken_up(client, opened, error, state):
    with pytest.raises(type(error)), opened() as (run_id, _):
        raise error
    assert _state(client, run_id) == state
    with opened(resume=True) as (again, _):
        assert _state(client, again) == ("RUNNING", None)
    assert again == run_id
    assert _state(client, run_id) == ("FINISHED", None)
    with pytest.raises(UserError, match="no unfinished run"), opened(resume=True):
        pass


def test_a_resume_with_another_configuration_is_refused_and_changes_nothing(client, opened):
    with pytest.raises(KeyboardInterrupt), opened() as (run_id, _):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"optim\.lr: 0\.1 -> 0\.3"), opened(resume=True, lr=0.3):
        pass
    assert _state(client, run_id) == ("KILLED", "SIGINT (Ctrl-C)")


def test_a_run_that_is_being_trained_is_not_taken_up(client, opened):
    with opened() as (run_id, _):
        with pytest.raises(UserError, match="another process"), opened(resume=True):
            pass
        assert _state(client, run_id) == ("RUNNING", None)


def test_a_run_says_what_it_is(client, opened):
    with opened() as (run_id, _):
        run = client.get_run(run_id)
    assert run.data.params["model.neuron.leak"] == "0.5"
    assert run.data.tags["agmm.data.train"]
    assert "lr: 0.1" in tracking.logged_config(run)


def test_a_tracking_server_that_goes_away_does_not_hide_the_cause(client, opened, monkeypatch):
    def gone(*_):
        raise OSError("no route")

    monkeypatch.setattr(tracking, "close_run", gone)
    with pytest.raises(RuntimeError, match="the real reason"), opened():
        raise RuntimeError("the real reason")
