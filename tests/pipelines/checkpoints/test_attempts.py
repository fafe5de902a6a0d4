"""Attempts of a run: each gets a number of its own, and the newest one alone commits."""

import json
import subprocess
import sys
import threading

import pytest
import torch

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.errors import Fenced
from pipelines.storage import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


def _checkpoint(step):
    return Checkpoint(Position(step=step), {"weight": torch.full((3,), float(step))}, {}, {}, config={})


def test_numbers_count_up_and_say_who(store):
    assert [claim(store, "one").number, claim(store, "one").number, claim(store, "two").number] == [1, 2, 3]
    assert json.loads(store.read("claims/0003"))["session"] == "two"


def test_threads_that_claim_at_once_get_different_numbers(tmp_path):
    barrier, numbers = threading.Barrier(8), []

    def run():
        store = open_store(str(tmp_path / "run"))
        barrier.wait()
        numbers.append(claim(store, "one").number)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(numbers) == list(range(1, 9))


def test_processes_that_claim_at_once_get_different_numbers(tmp_path):
    code = (
        "import sys; from pipelines.checkpoints.attempts import claim; from pipelines.storage import open_store\n"
        "sys.stdin.readline(); print([claim(open_store(sys.argv[1]), 'one').number for _ in range(20)])"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:  # both are told only now
        process.stdin.write("go\n")
        process.stdin.flush()
    numbers = [number for process in processes for number in json.loads(process.communicate(timeout=60)[0])]
    assert sorted(numbers) == list(range(1, 41))


@pytest.mark.parametrize(("session", "own"), [("one", True), ("another", False)])
def test_an_older_attempt_is_refused_and_told_by_whom(store, session, own):
    older = claim(store, "one")
    older.check()
    newer = claim(store, session)
    newer.check()
    with pytest.raises(
        Fenced, match=r"Attempt 1 of the run at .* was overtaken by attempt 2 \(process \d+ on"
    ) as caught:
        older.check()
    assert caught.value.own is own


def test_an_older_attempt_writes_nothing_at_all(store):
    older = claim(store, "one")
    claim(store, "one")
    with pytest.raises(Fenced):
        checkpoints.save(older, _checkpoint(5))
    assert not store.keys("attempt-")


def test_one_overtaken_while_it_uploads_sets_no_marker(store, monkeypatch):
    older, real = claim(store, "one"), store.put

    def put(source, key):
        real(source, key)
        if key.endswith("manifest.json"):
            claim(store, "one")

    monkeypatch.setattr(store, "put", put)
    with pytest.raises(Fenced):
        checkpoints.save(older, _checkpoint(5))
    assert store.keys("attempt-0001-step-000000005/")
    assert checkpoints.committed(store) == []


def test_what_an_older_one_commits_too_late_sorts_before_the_newer_ones(store, monkeypatch):
    """The claim comes after the last look, and before the marker: no check can see it."""
    older, real, newer = claim(store, "one"), store.put, []

    def put(source, key):
        if key.endswith("COMMITTED") and not newer:
            newer.append(claim(store, "one"))
            monkeypatch.undo()
            checkpoints.save(newer[0], _checkpoint(3))
        real(source, key)

    monkeypatch.setattr(store, "put", put)
    checkpoints.save(older, _checkpoint(9))
    assert checkpoints.committed(store) == ["attempt-0001-step-000000009", "attempt-0002-step-000000003"]
    assert checkpoints.newest_usable(store, print) == "attempt-0002-step-000000003"
    with pytest.raises(Fenced):
        checkpoints.save(older, _checkpoint(10))


def test_an_older_one_that_cleans_up_leaves_the_newer_ones_upload_alone(store, tmp_path):
    """It learns that it was overtaken at its next save only."""
    older = claim(store, "one")
    for step in (1, 2):
        name = checkpoints.save(older, _checkpoint(step))
    (tmp_path / "half").write_bytes(b"of a file")
    store.put(tmp_path / "half", "attempt-0002-step-000000003/model.safetensors")
    checkpoints.prune(store, 1, name)
    assert checkpoints.committed(store) == [name]
    assert store.keys("attempt-0002") == ["attempt-0002-step-000000003/model.safetensors"]


def test_a_driver_that_was_overtaken_does_not_take_the_run_back(tmp_path):
    """Its workers die and are started again: that must not fence whoever took over."""
    store = open_store(str(tmp_path / "run"))
    claim(store, "older")
    newer = claim(store, "newer")
    with pytest.raises(Fenced, match="taken over by attempt 2") as caught:
        claim(store, "older")
    assert not caught.value.own
    newer.check()
    claim(store, "newer").check()
