"""A Ray job's id in the run that it works on, and the way back."""

import json

import pytest

from pipelines.checkpoints.attempts import claim
from pipelines.errors import Fenced
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking
from pipelines.tracking.jobs import run_of_job
from pipelines.tracking.process import job_id, new_session, process_tags


@pytest.fixture
def job(monkeypatch):
    """Makes this process a job's."""

    def become(name):
        told = json.dumps({"metadata": {"job_submission_id": name}, "runtime_env": {}})
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", told)

    return become


@pytest.fixture
def client(store, tiny_config, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return tracking.connect(store)


@pytest.mark.parametrize("told", [None, "", "{", "{}", "[]", '{"metadata": null}'])
def test_outside_of_a_job(monkeypatch, told):
    if told is not None:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", told)
    assert job_id() == ""
    assert "/" not in new_session()


def test_every_job_of_a_run_leads_to_it(client, tiny_config, job, monkeypatch):
    job("agmm-12-1")
    run_id = tracking.create_run(client, tiny_config, process_tags())
    tracking.describe_run(client, run_id, tiny_config, {})
    job("agmm-12-10")
    tracking.reopen_run(client, run_id, process_tags())
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    tracking.reopen_run(client, run_id, process_tags())
    tracking.reopen_run(client, run_id, {})  # as the sender does
    tracking.close_run(client, run_id, "FAILED", "RuntimeError: broken by hand")
    tags = client.get_run(run_id).data.tags
    assert (tags["agmm.jobs"], tags["agmm.job"]) == ("agmm-12-1 agmm-12-10", "")

    store = open_store(f"{tiny_config.checkpoint.uri}/{run_id}")
    for name in ("attempt-0001-step-000000002", "attempt-0001-step-000000004"):
        assert store.create(f"{name}/COMMITTED", b"")
    known = {
        "run_id": run_id,
        "run_status": "FAILED",
        "run_cause": "RuntimeError: broken by hand",
        "checkpoint": f"{store.uri}/attempt-0001-step-000000004",
    }
    for name in ("agmm-12-1", "agmm-12-10"):
        assert run_of_job(name, "", pytest.fail) == known
    assert run_of_job("agmm-12-100", "", pytest.fail) == {}
    assert run_of_job("agmm-2-1", f"noise\nresuming run {run_id}: http://x\n", pytest.fail) == known


def test_a_log_tells_the_run_where_mlflow_is_away(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    said = []
    run_id = "0123456789abcdef" * 2
    assert run_of_job("agmm-1-1", f"started run {run_id}: http://x/\n", said.append) == {"run_id": run_id}
    assert "MLflow at http://127.0.0.1:1 failed" in said[0]


def test_a_claim_says_whose_job_it_is(tmp_path, job):
    store = open_store(str(tmp_path))
    job("agmm-12-1")
    first = claim(store, new_session())
    job("agmm-12-2")
    claim(store, new_session())
    with pytest.raises(Fenced, match=r"overtaken by attempt 2 \(process \d+ on .*, job agmm-12-2\)"):
        first.check()
