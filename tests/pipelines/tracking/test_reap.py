"""Runs whose process is gone are closed, with what they had to say; those that live are not touched."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.errors import UserError
from pipelines.tracking import reap, scribe
from pipelines.tracking import runs as tracking
from pipelines.tracking.process import process_tags
from pipelines.tracking.runs import HEARTBEAT_TAG, SESSION_TAG
from pipelines.tracking.spool import Spool, close_of

SCRIPT = Path(__file__).with_name("driver_run.py")
FIVE = timedelta(minutes=5)
WATCH_S = reap._WATCH_S  # before a test shortens it


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(reap, "_WATCH_S", 0.2)


@pytest.fixture
def gone():
    """The tags of a process of this machine that has ended."""
    code = "from pipelines.tracking.process import process_tags; import json; print(json.dumps(process_tags()))"
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def _tagged(client, run_id, tags):
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def _reap(client, store):
    return {row.run_id: (row.done, row.why) for row in reap.reap(client, store, FIVE, lambda _: None)}


def _ago(minutes):
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat(timespec="seconds")


def test_a_run_whose_process_and_scribe_are_gone_is_closed_with_its_last_rows(parts, store, gone):
    client, run_id = parts.open_run(store)
    _tagged(client, run_id, gone)
    spool = Spool(run_id)
    spool.append({"open": "s1", "uri": store})
    spool.append({"metrics": {"a": 1.0}, "step": 7, "time": 1})
    done, why = _reap(client, store)[run_id]
    assert (done, gone["agmm.pid"] in why) == ("closed", True)
    status, cause = parts.state(client, run_id)
    assert (status, cause) == ("FAILED", f"reaped: {why}")
    assert parts.steps(client, run_id, "a") == [7]
    assert not spool.path.exists()
    assert _reap(client, store) == {}


def test_the_end_that_a_run_could_not_tell_is_told(parts, store, gone):
    client, run_id = parts.open_run(store)
    _tagged(client, run_id, gone)
    Spool(run_id).append({"open": "s1", "uri": store})
    Spool(run_id).append(close_of("s1", "KILLED", "SIGTERM"))
    assert _reap(client, store)[run_id][0] == "closed"
    assert parts.state(client, run_id) == ("KILLED", "SIGTERM")


def test_a_run_that_lives_is_left_alone(parts, store):
    client, run_id = parts.open_run(store)
    _tagged(client, run_id, process_tags())
    assert _reap(client, store)[run_id][0] == "left"
    assert parts.state(client, run_id) == ("RUNNING", None)


def test_a_run_that_is_claimed_is_left_alone_whatever_its_tags_say(parts, store, gone):
    from pipelines.tracking.claim import claimed

    client, run_id = parts.open_run(store)
    _tagged(client, run_id, gone)
    with claimed(run_id):
        assert "another process" in _reap(client, store)[run_id][1]
    assert parts.state(client, run_id) == ("RUNNING", None)


@pytest.mark.parametrize(("minutes", "done"), [(0.5, "left"), (6, "closed")])
def test_a_run_of_another_machine_goes_by_its_heartbeat(parts, store, minutes, done):
    client, run_id = parts.open_run(store)
    _tagged(client, run_id, process_tags() | {"agmm.machine": "another", HEARTBEAT_TAG: _ago(minutes)})
    assert _reap(client, store)[run_id][0] == done
    assert parts.state(client, run_id)[0] == ("RUNNING" if done == "left" else "FAILED")


def test_a_run_that_gives_a_sign_while_it_is_watched_is_left_alone(parts, store, monkeypatch):
    client, run_id = parts.open_run(store)
    _tagged(client, run_id, process_tags() | {"agmm.machine": "another", HEARTBEAT_TAG: _ago(60)})
    monkeypatch.setattr(reap.time, "sleep", lambda _: client.set_tag(run_id, HEARTBEAT_TAG, _ago(0)))
    assert _reap(client, store)[run_id] == (
        "left",
        f"process {process_tags()['agmm.pid']} on {process_tags()['agmm.host']} has given a sign of life",
    )


def test_watching_takes_longer_than_a_heartbeat():
    assert WATCH_S > scribe._BEAT_EVERY_S + scribe._LONGEST_PAUSE_S


@pytest.mark.parametrize("seconds", [0, 59])
def test_a_time_shorter_than_heartbeats_need_is_refused(store, seconds):
    with pytest.raises(UserError, match=r"--stale=.* is too short.*Allowed: 1 or more"):
        reap.reap(tracking.connect(store), store, timedelta(seconds=seconds), lambda _: None)


def test_a_run_that_another_session_took_over_meanwhile_keeps_its_state(parts, store, gone):
    client, run_id = parts.open_run(store)
    run = client.get_run(run_id)
    client.set_tag(run_id, SESSION_TAG, "newer")
    reap._settle(client, store, run, reap._Verdict(True, "gone"))
    assert parts.state(client, run_id) == ("RUNNING", None)


def test_what_belongs_to_another_mlflow_stays(parts, store):
    client, _ = parts.open_run(store)
    Spool("elsewhere").append({"open": "s1", "uri": "http://127.0.0.1:9"})
    assert _reap(client, store)["elsewhere"] == ("left", "its journal belongs to MLflow at http://127.0.0.1:9")
    assert Spool("elsewhere").path.exists()


def test_runs_of_others_are_none_of_ours(parts, store):
    client, _ = parts.open_run(store)
    foreign = client.create_run("0").info.run_id
    assert foreign not in _reap(client, store)


def test_killed_to_the_last_process_then_reaped_by_the_command(parts, store, tiny_tree, tmp_path, monkeypatch, capsys):
    """SIGKILL to the driver and its scribe: the run says RUNNING until `agmm runs reap`; a living one stays."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(tiny_tree))
    with subprocess.Popen([sys.executable, SCRIPT, path], stdout=subprocess.PIPE, text=True) as driver:
        run_id = driver.stdout.readline().strip()
        client = tracking.connect(store)
        parts.wait_for(lambda: parts.steps(client, run_id, "train/loss") == [1])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        assert _command(capsys)[run_id]["done"] == "left"
        for process in parts.scribes(run_id):
            process.kill()
        driver.kill()
    assert parts.state(client, run_id) == ("RUNNING", None)
    assert _command(capsys)[run_id]["done"] == "closed"
    status, cause = parts.state(client, run_id)
    assert (status, cause.startswith("reaped: process")) == ("FAILED", True)


def _command(capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["runs", "reap", "--json"])
    assert ended.value.code == 0
    return {row["run_id"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
