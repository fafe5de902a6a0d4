"""The desk between whoever ends a run and its rank 0, on a Ray of its own."""

import signal
import threading
import time

import pytest
import ray

from pipelines.on_ray.desk import EAR, Ear, ask, open_desk

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def local_ray():
    options = {"num_cpus": 1, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    before = signal.getsignal(signal.SIGTERM)
    ray.init(address="local", log_to_driver=False, logging_level="ERROR", **options)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, before)  # Ray's own would stay, for all tests that follow


@pytest.fixture
def desk(local_ray):
    """A desk that goes with its test, and whoever still listens to it: nobody may call Ray while it shuts down."""
    opened = open_desk()
    yield opened
    ray.kill(opened)
    for thread in threading.enumerate():
        if thread.name == EAR:
            thread.join(20)
            assert not thread.is_alive()


def _until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def ear(desk):
    """Rank 0's end, known to the desk."""
    listening = Ear(desk)
    assert not listening.asked()
    _until(lambda: ray.get(desk.is_attended.remote()))
    return listening


def test_nobody_is_waited_for_where_no_worker_trains(desk):
    began = time.monotonic()
    assert ask(desk, 60) == ""
    assert time.monotonic() - began < 20


def test_rank_0_hears_it_and_its_answer_comes_back(desk, ear):
    def save():
        _until(ear.asked)
        ray.get(desk.answer.remote("step-7"))

    rank_0 = threading.Thread(target=save)
    rank_0.start()
    assert ask(desk, 60) == "step-7"
    rank_0.join()


def test_the_wait_is_bounded_and_can_be_cut(desk, ear):
    began = time.monotonic()
    assert ask(desk, 0.5) == ""
    assert ask(desk, 60, skip=lambda: True) == ""
    assert time.monotonic() - began < 20
    assert ear.asked()


def test_workers_that_start_again_are_asked_anew(desk, ear):
    assert ask(desk, 0.1) == ""
    _until(ear.asked)
    second = Ear(desk)
    assert not second.asked()
    time.sleep(1)
    assert not second.asked()


def test_seconds_are_counted_from_the_start_of_the_workers(desk, ear):
    ray.get(desk.starting.remote())
    assert 0 <= ear.seconds() < 20
