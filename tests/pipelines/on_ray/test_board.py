"""The board: what comes out of its queue goes to who listens, in order, whatever they do with it."""

import queue
import signal
import threading
from contextlib import nullcontext

import pytest
import ray.util.queue
from ray.exceptions import RayActorError

from pipelines.on_ray import board
from pipelines.on_ray.board import Board, heard


class LocalQueue:
    """Ray's queue without its actor."""

    def __init__(self, **_):
        self._queue, self.failure = queue.Queue(), None

    def put(self, item, block=True, timeout=None):
        self._queue.put(item)

    def get(self, timeout):
        if self.failure:
            raise self.failure
        try:
            return self._queue.get(timeout=min(timeout, 0.02))
        except queue.Empty:
            raise ray.util.queue.Empty from None


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray.util.queue, "Queue", LocalQueue)
    monkeypatch.setattr(board, "beside_me", dict)


def test_all_that_came_is_taken_before_the_context_ends():
    taken, drawn = [], []
    watched = Board({"trial": taken.append})
    with heard(watched, nullcontext(drawn.append)):
        for number in range(200):
            board.send(watched.queue, {"trial": number})
        board.send(watched.queue, {"say": "a line"})
    assert taken == [{"trial": number} for number in range(200)]
    assert drawn == [{"say": "a line"}]


def test_a_listener_that_fails_costs_one_item(capsys):
    taken = []

    def take(item):
        if item["trial"] == 1:
            raise KeyError("a bug")
        if item["trial"] == 2:
            raise OSError("a full disk")
        taken.append(item["trial"])

    watched = Board({"trial": take})
    with heard(watched, nullcontext(pytest.fail)):
        for number in range(4):
            board.send(watched.queue, {"trial": number})
    assert taken == [0, 3]
    assert capsys.readouterr().err == "what a worker told was lost: KeyError: 'a bug'\n"


def test_a_queue_that_is_gone_ends_the_thread_alone():
    watched, before = Board(), set(threading.enumerate())
    with heard(watched, nullcontext(pytest.fail)):
        watched.queue.failure = RayActorError()
    assert set(threading.enumerate()) == before


def test_a_failure_interrupts_once_with_the_first_reason():
    interrupts = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    try:
        watched = Board()
        with heard(watched, nullcontext(pytest.fail)):
            for reason in ("UserError: first", "UserError: second"):
                board.send(watched.queue, {"failed": reason})
    finally:
        signal.signal(signal.SIGINT, before)
    assert watched.failure == "UserError: first"
    assert interrupts == [1]
