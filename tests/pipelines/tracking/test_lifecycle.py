"""A run's states in MLflow, without workers."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from pipelines.config import parse_config
from pipelines.data.manifest import load_manifest
from pipelines.errors import Fenced, TrainingFailed, UserError
from pipelines.tracking import lifecycle
from pipelines.tracking import runs as tracking
from pipelines.tracking.lifecycle import tracked
from pipelines.tracking.process import process_tags
from pipelines.tracking.scribe import LOST

SCRIPT = Path(__file__).with_name("driver_run.py")


@pytest.fixture
def client(store, tiny_config):
    assert tiny_config.tracking.uri == store
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


def test_whoever_holds_a_run_is_named(client, opened, monkeypatch):
    """Also to one who comes before the run's tags say it."""
    monkeypatch.setattr(lifecycle, "process_tags", dict)
    with opened(), pytest.raises(UserError, match=rf"another process: process {os.getpid()} on "), opened(resume=True):
        pass


def test_a_run_of_another_home_that_lives_is_not_taken_up(client, opened, tiny_tree, tmp_path):
    """As of a job on a head without AGMM_HOME, where each job has a folder of its own."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    job = json.dumps({"metadata": {"job_submission_id": "agmm-0a1b-1"}})
    env = {**os.environ, "AGMM_HOME": str(tmp_path / "other"), "RAY_JOB_CONFIG_JSON_ENV_VAR": job}
    with subprocess.Popen([sys.executable, SCRIPT, path], stdout=subprocess.PIPE, text=True, env=env) as first:
        run_id = first.stdout.readline().strip()
        with (
            pytest.raises(
                UserError, match=rf"being trained by another process: job agmm-0a1b-1 \(process {first.pid} "
            ),
            opened(resume=True),
        ):
            pass
        assert _state(client, run_id) == ("RUNNING", None)
        first.terminate()


@pytest.mark.parametrize("lives", [True, False])
def test_a_run_of_another_machine_is_watched_before_it_is_taken_up(
    client, opened, tiny_config, tiny_data, monkeypatch, lives
):
    monkeypatch.setattr(lifecycle, "_WATCH_S", 20.0 if lives else 0.1)
    tags = process_tags() | {"agmm.machine": "another", "agmm.pid": "7", tracking.HEARTBEAT_TAG: "then"}
    run_id = tracking.create_run(client, tiny_config, tags)
    digests = lifecycle._digests(tiny_config, load_manifest(tiny_data))
    tracking.describe_run(client, run_id, tiny_config, digests)
    if not lives:
        with opened(resume=True) as (again, _):
            assert again == run_id
        return
    beat = threading.Timer(0.5, client.set_tag, (run_id, tracking.HEARTBEAT_TAG, "now"))
    beat.start()
    with pytest.raises(UserError, match="being trained by another process: process 7 on"), opened(resume=True):
        pass
    beat.join()
    assert _state(client, run_id)[0] == "RUNNING"


def test_a_run_says_what_it_is(client, opened):
    with opened() as (run_id, _):
        run = client.get_run(run_id)
    assert run.data.params["model.neuron.leak"] == "0.5"
    assert run.data.tags["agmm.data.train"]
    assert "lr: 0.1" in tracking.logged_config(run)


def test_an_error_of_the_workers_is_the_cause_by_its_own_name(client, opened):
    with pytest.raises(TrainingFailed, match="Training failed"), opened() as (run_id, _):
        raise TrainingFailed("NotFinite: loss at step 3")
    assert _state(client, run_id) == ("FAILED", "NotFinite: loss at step 3")


def test_a_fenced_attempt_leaves_the_state_to_the_newer_one(client, opened):
    ran = []

    def work():
        with opened() as run:
            ran.append(run.id)
            run.journal.log({"a": 1.0}, 1)
            raise Fenced("overtaken by attempt 2")

    with pytest.raises(Fenced):
        work()
    (run_id,) = ran
    assert _state(client, run_id) == ("RUNNING", None)
    assert client.get_run(run_id).data.metrics == {"a": 1.0}


def test_a_data_base_that_is_locked_at_the_end_does_not_hide_what_ended_the_run(client, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(lifecycle, "_WAIT_S", 1.0)
    locked = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    ran = []

    def work():
        with opened() as run:
            ran.append(run.id)
            locked.execute("BEGIN EXCLUSIVE")
            raise RuntimeError("the real reason")

    with pytest.raises(RuntimeError, match="the real reason"):
        work()
    (run_id,) = ran
    locked.close()
    deadline = time.monotonic() + 60
    while _state(client, run_id)[0] == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _state(client, run_id) == ("FAILED", "RuntimeError: the real reason")


@pytest.mark.parametrize(
    ("number", "state"),
    [
        (signal.SIGKILL, ("FAILED", LOST)),
        (signal.SIGTERM, ("KILLED", "SIGTERM")),
        (signal.SIGHUP, ("KILLED", "SIGHUP")),
        (signal.SIGINT, ("KILLED", "SIGINT (Ctrl-C)")),
    ],
)
def test_a_driver_that_is_ended_leaves_the_right_state_within_half_a_minute(client, tiny_tree, tmp_path, number, state):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    with subprocess.Popen([sys.executable, SCRIPT, path], stdout=subprocess.PIPE, text=True) as driver:
        run_id = driver.stdout.readline().strip()
        driver.send_signal(number)
        started = time.monotonic()
    while _state(client, run_id)[0] == "RUNNING" and time.monotonic() < started + 30:
        time.sleep(0.1)
    assert _state(client, run_id) == state
    assert client.get_run(run_id).data.metrics == {"train/loss": 0.5}


def test_a_driver_that_takes_over_at_once_keeps_the_run_open(client, tiny_tree, tmp_path):
    """The scribe of the killed driver and the next driver meet: whoever is first, the run belongs to the next."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    with subprocess.Popen([sys.executable, SCRIPT, path], stdout=subprocess.PIPE, text=True) as first:
        run_id = first.stdout.readline().strip()
        first.kill()
    with subprocess.Popen([sys.executable, SCRIPT, path, "--resume"], stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout.readline().strip() == run_id
        time.sleep(8)
        assert _state(client, run_id) == ("RUNNING", None)
        second.terminate()
    assert _state(client, run_id) == ("KILLED", "SIGTERM")
