"""Checkpoints behind the step: who waits for what, and what becomes of one that cannot be stored."""

import os
import threading
import time

import pytest
import torch

from agmm.loop import NotFinite
from pipelines import faults
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints import saver
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.checkpoints.saver import Saver
from pipelines.errors import Fenced, ServiceError
from pipelines.storage import open_store


@pytest.fixture
def inject(monkeypatch):
    def call(text):
        monkeypatch.setattr(faults, "_faults", faults._parse(text))
        monkeypatch.setattr(faults, "_passed", faults.Counter())

    return call


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "run"))


@pytest.fixture
def attempt(store):
    return claim(store, "one")


@pytest.fixture
def make(attempt, monkeypatch):
    """Make a saver; `saved` and `failures` of it are what it told."""
    monkeypatch.setattr(saver, "_PAUSE_S", 0.05)
    made = []

    def call(keep=10, max_age_s=60.0):
        saved, failures = [], []
        made.append(Saver(attempt, keep=keep, max_age_s=max_age_s, on_saved=saved.append, on_failure=failures.append))
        made[-1].saved, made[-1].failures = saved, failures
        return made[-1]

    yield call
    for each in made:
        each.close()


def _checkpoint(step, weight=None):
    weight = torch.full((3,), float(step)) if weight is None else weight
    return Checkpoint(Position(step=step), {"weight": weight}, {}, {}, config={})


def _name(step):
    return f"attempt-0001-step-{step:09d}"


def _until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_while_one_is_stored_none_is_taken_and_no_step_waits(make, store, inject):
    inject("checkpoint.upload=sleep:1@1")
    saver = make()
    assert saver.ready()
    started = time.perf_counter()
    saver.save(_checkpoint(1))
    assert not saver.ready()
    assert time.perf_counter() - started < 0.5
    assert checkpoints.committed(store) == []
    _until(saver.ready)
    assert saver.saved == [_name(1)] == checkpoints.committed(store)


def test_what_is_stored_is_what_was_there_at_the_time(make, store, inject):
    """Also the second time, in memory that is used again, and with another shape."""
    inject("checkpoint.write=sleep:0.1")
    saver, weight = make(), torch.zeros(4)
    for step, shape in ((1, (4,)), (2, (4,)), (3, (2, 3)), (4, (2, 3))):
        weight = torch.full(shape, float(step))
        saver.save(_checkpoint(step, weight))
        weight.fill_(-1.0)
        _until(saver.ready)
        assert torch.equal(checkpoints.load(store, _name(step)).model["weight"], torch.full(shape, float(step)))


def test_the_memory_is_the_same_from_one_to_the_next(make):
    saver, places = make(), set()
    for step in (1, 2, 3):
        saver.save(_checkpoint(step))
        places.add(saver._memory["model/weight"].data_ptr())
        _until(saver.ready)
    assert len(places) == 1


def test_a_failure_is_told_and_the_next_one_is_stored(make, store, inject):
    inject("checkpoint.manifest=error@1")
    saver = make()
    saver.save(_checkpoint(1))
    _until(lambda: saver.failures)
    (said,) = saver.failures
    assert said == "the checkpoint of step 1 could not be stored: injected at checkpoint.manifest (AGMM_FAULTS)"
    _until(saver.ready)  # raises nothing, and is free after a pause
    saver.save(_checkpoint(2))
    _until(saver.ready)
    assert checkpoints.committed(store) == [_name(2)]
    assert len(saver.failures) == 1


def test_after_a_failure_there_is_a_pause(make, inject, monkeypatch):
    monkeypatch.setattr(saver, "_PAUSE_S", 0.3)
    inject("checkpoint.write=error")
    storing = make()
    storing.save(_checkpoint(1))
    _until(lambda: storing._waiting is None)
    assert not storing.ready()
    _until(storing.ready)


def test_failing_for_too_long_is_raised(make, inject):
    inject("checkpoint.commit=error")
    started = time.monotonic()
    saver = make(max_age_s=1.0)
    saver.save(_checkpoint(1))
    with pytest.raises(
        ServiceError, match=r"No checkpoint could be stored for \d+ s, .* The last try: injected at"
    ) as caught:
        _until(lambda: saver.ready() and saver.save(_checkpoint(2)))
    assert not isinstance(caught.value, Fenced)
    assert 1.0 <= time.monotonic() - started < 15
    assert len(saver.failures) > 1


def test_a_success_starts_the_age_again(make, inject):
    saver = make(max_age_s=1.0)
    for step in (1, 2, 3):
        time.sleep(0.4)
        saver.save(_checkpoint(step))
        _until(saver.ready)
    inject("checkpoint.write=error")
    saver.save(_checkpoint(4))
    _until(lambda: saver.failures)
    saver.ready()  # the attempt is older than the age; its newest checkpoint is not


def test_one_that_was_overtaken_hears_it_at_the_next_step(make, store):
    saver = make()
    claim(store, "another")
    saver.save(_checkpoint(1))
    with pytest.raises(Fenced, match="overtaken by attempt 2"):
        _until(saver.ready)
    assert not saver.failures  # it must not write to the run, which is another's
    assert checkpoints.committed(store) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_stored(make, store, value):
    saver = make()
    saver.save(_checkpoint(7, torch.tensor([1.0, value])))
    with pytest.raises(NotFinite, match="the weights are not finite after step 7, which is not stored"):
        _until(saver.ready)
    assert checkpoints.committed(store) == []


def test_the_last_one_is_tried_again_until_it_is_stored(make, store, inject):
    inject("checkpoint.upload=error@1, checkpoint.commit=error@1, checkpoint.verify=error@1")
    saver = make(max_age_s=8.0)
    assert saver.finish(_checkpoint(9)) == _name(9)
    assert len(saver.failures) == 3
    checkpoints.verify(store, _name(9))


def test_the_last_one_waits_for_the_one_before(make, store, inject):
    inject("checkpoint.write=sleep:0.2")
    saver = make()
    saver.save(_checkpoint(1))
    assert saver.finish(_checkpoint(2)) == _name(2)
    assert saver.saved == [_name(1), _name(2)]


def test_the_last_one_gives_up_in_the_end(make, inject):
    inject("checkpoint.write=error")
    with pytest.raises(ServiceError, match=r"checkpoint\.max_age is 1 s"):
        make(max_age_s=0.6).finish(_checkpoint(1))


def test_closing_finishes_what_is_being_stored_and_ends_the_thread(make, store, inject):
    inject("checkpoint.upload=sleep:0.1@1")
    saver = make()
    saver.save(_checkpoint(1))
    saver.close()
    assert checkpoints.committed(store) == [_name(1)]
    assert not saver._thread.is_alive()


def test_retention_keeps_the_newest_few(make, store):
    saver = make(keep=2)
    for step in range(1, 6):
        saver.save(_checkpoint(step))
        _until(saver.ready)
    assert checkpoints.committed(store) == [_name(4), _name(5)]
    assert {key.split("/")[0] for key in store.keys("attempt-")} == {_name(4), _name(5)}


def test_one_that_is_damaged_on_its_way_costs_no_older_one(make, store, tmp_path, monkeypatch):
    """Bad memory or a bad disk between put and read: it is committed, but not verified, and removes nothing."""
    saver, real = make(keep=1), store.put
    saver.save(_checkpoint(1))
    _until(saver.ready)

    def put(source, key):
        real(source, key)
        if key.endswith("COMMITTED"):
            file = tmp_path / "run" / key.replace("COMMITTED", "model.safetensors")
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)

    monkeypatch.setattr(store, "put", put)
    for step in (2, 3):
        saver.save(_checkpoint(step))
        _until(saver.ready)
    assert [f"step {step} could" in said for step, said in zip((2, 3), saver.failures, strict=True)] == [True, True]
    assert "model.safetensors does not have the hash that was committed" in saver.failures[0]
    assert _name(1) in checkpoints.committed(store)
    assert checkpoints.newest_usable(store, lambda _: None) == _name(1)
    monkeypatch.undo()
    saver.save(_checkpoint(4))
    _until(saver.ready)
    assert checkpoints.committed(store) == [_name(4)]


def test_old_ones_that_cannot_be_removed_end_nothing(make, inject):
    inject("checkpoint.prune=error")
    saver = make(max_age_s=0.01)
    saver.save(_checkpoint(1))
    _until(saver.ready)
    assert saver.saved == [_name(1)]
    assert saver.failures == ["old checkpoints could not be removed: injected at checkpoint.prune"]
    assert saver.ready()


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="threads have a niceness of their own on Linux only")
def test_the_thread_stands_back_and_the_process_does_not(make, inject):
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    saver = make()
    saver.save(_checkpoint(1))
    _until(saver.ready)
    assert os.getpriority(os.PRIO_PROCESS, saver._thread.native_id) == 10
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine
