"""What a run logs arrives once, whatever dies or stops on the way: real processes, SQLite files and servers."""

import math
import resource
import sqlite3
import time

import pytest

from pipelines import faults
from pipelines.tracking import journal as journals
from pipelines.tracking import runs as tracking
from pipelines.tracking.runs import CAUSE_TAG, HEARTBEAT_TAG, SESSION_TAG
from pipelines.tracking.sender import Sender
from pipelines.tracking.spool import Spool, close_of

ROWS = 40


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(journals, "_START_AGAIN_S", 0.2)


def _log(journal, first=1, last=ROWS, keys=3):
    for step in range(first, last + 1):
        journal.log({f"key{number}": step + number for number in range(keys)}, step)


def _assert_once(parts, client, run_id, last=ROWS, keys=3):
    for number in range(keys):
        rows = client.get_metric_history(run_id, f"key{number}")
        assert [(row.step, row.value) for row in rows] == [(step, step + number) for step in range(1, last + 1)]


def test_what_is_logged_arrives_in_order_and_nothing_is_left_over(parts, store):
    client, run_id = parts.open_run(store)
    journal = parts.journal_of(run_id, store)
    _log(journal)
    journal.tag("said", "something")
    assert journal.flush(30)
    _assert_once(parts, client, run_id)
    assert client.get_run(run_id).data.tags["said"] == "something"
    assert client.get_run(run_id).data.tags["agmm.heartbeat"]
    assert journal.close("FINISHED", wait_s=30)
    assert parts.state(client, run_id) == ("FINISHED", None)
    assert not parts.scribes(run_id)
    assert not list(Spool(run_id).path.parent.iterdir())


def test_nan_and_infinity_arrive_and_are_not_doubled(parts, store, monkeypatch):
    monkeypatch.setenv("AGMM_FAULTS", "metrics.acknowledge=crash@1")
    client, run_id = parts.open_run(store)
    journal = parts.journal_of(run_id, store)
    monkeypatch.delenv("AGMM_FAULTS")
    journal.log({"nan": math.nan, "inf": math.inf, "-inf": -math.inf}, 1)
    assert journal.close("FINISHED", wait_s=60)
    values = {key: [row.value for row in client.get_metric_history(run_id, key)] for key in ("nan", "inf", "-inf")}
    assert math.isnan(*values["nan"])
    assert values["inf"] == [-value for value in values["-inf"]]
    assert values["inf"][0] > 1e308


def test_a_step_logged_again_keeps_its_first_value(parts, store):
    """A resume repeats the steps after its checkpoint; each key goes on where it was."""
    client, run_id = parts.open_run(store)
    journal = parts.journal_of(run_id, store)
    journal.log({"train/loss": 1.0}, 1)
    journal.log({"train/loss": 2.0}, 2)
    journal.log({"val/loss": 5.0}, 1)
    assert journal.close("KILLED", "SIGTERM", wait_s=30)
    client.set_tag(run_id, SESSION_TAG, "s2")
    journal = parts.journal_of(run_id, store, session="s2")
    journal.log({"train/loss": -2.0, "val/loss": 6.0}, 2)
    journal.log({"train/loss": 3.0}, 3)
    assert journal.close("FINISHED", wait_s=30)
    history = {
        key: [(row.step, row.value) for row in client.get_metric_history(run_id, key)]
        for key in ("train/loss", "val/loss")
    }
    assert history == {"train/loss": [(1, 1.0), (2, 2.0), (3, 3.0)], "val/loss": [(1, 5.0), (2, 6.0)]}


@pytest.mark.parametrize(
    "faults",
    [
        "metrics.send=crash@1",
        "metrics.send=crash@3",
        "metrics.acknowledge=crash@1",
        "metrics.acknowledge=crash@4",
        "metrics.send=error@2",
        "metrics.acknowledge=error",
    ],
)
def test_a_scribe_that_dies_or_fails_loses_and_doubles_nothing(parts, store, monkeypatch, faults):
    monkeypatch.setenv("AGMM_FAULTS", faults)
    client, run_id = parts.open_run(store)
    said = []
    journal = parts.journal_of(run_id, store, said)
    monkeypatch.delenv("AGMM_FAULTS")  # what is started again is whole
    acknowledges = faults != "metrics.acknowledge=error"
    for part in range(4):
        _log(journal, 10 * part + 1, 10 * part + 10)
        assert journal.flush(60 if acknowledges else 0.7) == acknowledges  # so that several requests are made
    assert journal.close("FINISHED", wait_s=60) or not acknowledges
    assert "crash" not in faults or any("another is started" in line for line in said)
    parts.wait_for(lambda: parts.state(client, run_id) == ("FINISHED", None))
    _assert_once(parts, client, run_id)


def test_a_locked_data_base_delays_nobody(parts, store, tmp_path):
    client, run_id = parts.open_run(store)
    journal = parts.journal_of(run_id, store)
    _log(journal, 1, 10)
    assert journal.flush(30)
    locked = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    locked.execute("BEGIN EXCLUSIVE")
    slowest = 0.0
    for step in range(11, ROWS + 1):
        started = time.perf_counter()
        _log(journal, step, step)
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.1)
    assert not journal.flush(5)
    locked.execute("COMMIT")
    locked.close()
    assert slowest < 0.05
    assert journal.close("FINISHED", wait_s=60)
    _assert_once(parts, client, run_id)


def test_a_key_that_mlflow_refuses_costs_itself_only(parts, store):
    client, run_id = parts.open_run(store)
    journal = parts.journal_of(run_id, store)
    _log(journal, 1, 5)
    journal.log({"no such; key": 1.0, "good": 1.0}, 5)
    _log(journal, 6, ROWS)
    assert journal.flush(30)
    _assert_once(parts, client, run_id)
    assert parts.steps(client, run_id, "good") == [5]
    assert "refuses no such; key of step 5" in Spool(run_id).log.read_text()
    journal.close("FINISHED", wait_s=30)


def test_a_full_disk_costs_rows_and_not_the_state(parts, store):
    client, run_id = parts.open_run(store)
    said = []
    journal = parts.journal_of(run_id, store, said)
    _log(journal, 1, 10)
    assert journal.flush(60)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Spool(run_id).size(), limits[1]))
    try:
        _log(journal, 11, 20)
        journal.close("KILLED", "SIGTERM", wait_s=30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len([line for line in said if "cannot be kept" in line]) == 1
    parts.wait_for(lambda: parts.state(client, run_id) == ("KILLED", "SIGTERM"))
    _assert_once(parts, client, run_id, last=10)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_session_that_the_disk_never_took_is_closed_as_its_driver_says(parts, store, monkeypatch, earlier):
    client, run_id = parts.open_run(store)
    if earlier:
        for line in (
            {"open": "s0", "uri": store},
            {"metrics": {"a": 1.0}, "step": 1, "time": 1},
            close_of("s0", "FAILED", ""),
        ):
            Spool(run_id).append(line)
    monkeypatch.setattr(faults, "_faults", faults._parse("metrics.append=error"))  # in this process only
    parts.journal_of(run_id, store).close("KILLED", "SIGTERM", wait_s=30)
    parts.wait_for(lambda: parts.state(client, run_id) == ("KILLED", "SIGTERM"))
    assert client.get_run(run_id).data.metrics == ({"a": 1.0} if earlier else {})


def test_an_abandoned_session_that_the_disk_never_took_leaves_the_state(parts, store, monkeypatch):
    client, run_id = parts.open_run(store)
    monkeypatch.setattr(faults, "_faults", faults._parse("metrics.append=error"))
    assert parts.journal_of(run_id, store).abandon(wait_s=30)
    parts.wait_for(lambda: not parts.scribes(run_id))
    assert parts.state(client, run_id) == ("RUNNING", None)


def test_a_row_of_more_keys_than_a_request_takes(parts, store):
    client, run_id = parts.open_run(store)
    journal = parts.journal_of(run_id, store)
    _log(journal, 1, 2, keys=1500)
    assert journal.close("FINISHED", wait_s=30)
    _assert_once(parts, client, run_id, last=2, keys=1500)


def test_a_state_that_a_newer_session_owns_is_left_alone(parts, store):
    client, run_id = parts.open_run(store)
    journal = parts.journal_of(run_id, store)
    _log(journal)
    assert journal.flush(30)
    client.set_tag(run_id, SESSION_TAG, "of another machine")
    assert journal.close("FAILED", "too late", wait_s=30)
    assert parts.state(client, run_id) == ("RUNNING", None)
    _assert_once(parts, client, run_id)


def test_a_step_that_two_drivers_logged_is_drawn_with_its_first_value(parts, store):
    client, run_id = parts.open_run(store)
    for value, time_ms, step in ((3.0, 30, 2), (2.0, 20, 2), (1.0, 40, 1)):
        client.log_metric(run_id, "a", value, timestamp=time_ms, step=step)
    assert tracking.history(client, run_id, ["a", "none"]) == {"a": [(1, 1.0), (2, 2.0)], "none": []}


def test_a_session_without_the_run_logs_nothing_from_its_next_beat_on(parts, store):
    """Two drivers of different homes: the older one must not double the steps that the newer one logs."""
    client, run_id = parts.open_run(store)
    spool, said = Spool(run_id), []
    sender = Sender(spool, store, said.append)
    spool.append({"open": "s1", "uri": store})
    spool.append({"metrics": {"a": 1.0}, "step": 1, "time": 1})
    sender.beat("s1")
    sender.send(only="s1")
    client.set_tag(run_id, SESSION_TAG, "s2")
    client.set_tag(run_id, HEARTBEAT_TAG, "of s2")
    spool.append({"metrics": {"a": 2.0}, "step": 2, "time": 2})
    spool.append({"tag": "said", "value": "by s1"})
    spool.append(close_of("s1", "FAILED", "refused"))
    sender.beat("s1")
    sender.beat("s1")
    sender.send(only="s1")
    tags = client.get_run(run_id).data.tags
    assert parts.steps(client, run_id, "a") == [1]
    assert (tags.get("said"), tags[HEARTBEAT_TAG]) == (None, "of s2")
    assert parts.state(client, run_id) == ("RUNNING", None)
    assert len([line for line in said if "s2 owns the run" in line]) == 1
    assert spool.mark().offset == spool.size()  # the driver's end waits for nothing


def test_a_run_that_was_closed_by_mistake_runs_again(parts, store, monkeypatch):
    client, run_id = parts.open_run(store)
    client.set_terminated(run_id, "FAILED")
    journal = parts.journal_of(run_id, store)
    parts.wait_for(lambda: parts.state(client, run_id)[0] == "RUNNING")
    assert journal.close("FINISHED", wait_s=30)


def test_each_beat_of_a_live_driver_revives_a_run_that_was_closed(parts, store):
    client, run_id = parts.open_run(store)
    sender = Sender(Spool(run_id), store, lambda _: None)
    for _ in range(2):
        client.set_tag(run_id, CAUSE_TAG, "reaped: too early")
        client.set_terminated(run_id, "FAILED")
        sender.beat("s1")
        assert parts.state(client, run_id) == ("RUNNING", None)


@pytest.mark.timeout(240)
def test_a_server_that_stops_and_comes_back_has_every_row_once(parts, server):
    client, run_id = parts.open_run(server.uri)
    said = []
    journal = parts.journal_of(run_id, server.uri, said)
    _log(journal, 1, 10)
    assert journal.flush(60)
    _log(journal, 11, 20)  # some of it may be on its way
    time.sleep(0.5)
    server.stop()
    started = time.perf_counter()
    _log(journal, 21, 30)
    assert time.perf_counter() - started < 0.5
    assert not journal.flush(12)
    assert any("waiting for MLflow" in line for line in said)
    server.start()
    _log(journal, 31, ROWS)
    assert journal.close("FINISHED", wait_s=60)
    _assert_once(parts, client, run_id)
    assert parts.state(client, run_id) == ("FINISHED", None)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_end_of_a_run_is_told_when_the_server_is_back(parts, server):
    client, run_id = parts.open_run(server.uri)
    said = []
    journal = parts.journal_of(run_id, server.uri, said)
    _log(journal, 1, 10)
    assert journal.flush(60)
    server.stop()
    _log(journal, 11, ROWS)
    assert not journal.close("FAILED", "NotFinite: loss", wait_s=2)
    assert "agmm runs reap" in said[-1]
    server.start()
    parts.wait_for(lambda: parts.state(client, run_id) == ("FAILED", "NotFinite: loss"))
    _assert_once(parts, client, run_id)
    parts.wait_for(lambda: not parts.scribes(run_id))
    assert not list(Spool(run_id).path.parent.iterdir())
