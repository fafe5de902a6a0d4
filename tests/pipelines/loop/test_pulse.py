"""What a rank tells of its phases, on a clock of the test's own."""

import os
import threading
import time

import pytest

from pipelines.loop.pulse import Pulse


class _Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return _Clock()


def _steps(pulse, clock, *phases, step=1):
    """One step of these `(phase, seconds)`, and into the next one's loading."""
    for name, seconds in phases:
        pulse.phase(name, step)
        clock.now += seconds
    pulse.phase("load", step + 1)


STEP = (("load", 0.5), ("forward", 0.25), ("backward", 30.0), ("update", 0.125))


def test_busy_is_loading_and_forward_of_the_steps_since_the_last_item(clock):
    pulse = Pulse(3, clock)
    clock.now = 12.0
    _steps(pulse, clock, ("load", 8.0), ("forward", 9.0), ("backward", 1.0), ("update", 1.0))
    first = pulse.item()
    assert (first["steps"], first["busy"], first["done"]) == (0, 0.0, 1)  # the first step holds compilation
    _steps(pulse, clock, *STEP, step=2)
    _steps(pulse, clock, ("load", 1.5), *STEP[1:], step=3)
    clock.now += 2.0
    item = pulse.item()
    assert item["busy"] == (0.75 + 1.75) / 2
    assert (item["rank"], item["step"], item["phase"], item["since"]) == (3, 4, "load", 2.0)
    assert (item["steps"], item["done"], item["pid"]) == (2, 3, os.getpid())
    assert pulse.item()["steps"] == 0


def test_what_is_not_part_of_a_step_does_not_count(clock):
    """Reports, validation and checkpoints come between steps, and one rank may have more of them."""
    pulse = Pulse(0, clock)
    _steps(pulse, clock, *STEP)
    for name in ("gather", "report", "validate", "gather", "commit", "gather"):
        pulse.phase(name)
        clock.now += 100.0
    _steps(pulse, clock, *STEP, step=2)
    assert pulse.item()["busy"] == 0.75


def test_laps_hold_every_second_once(clock):
    pulse = Pulse(0, clock)
    clock.now += 4.0
    assert pulse.lap() == {"start": 4.0}
    _steps(pulse, clock, *STEP, step=2)
    clock.now += 1.0
    assert {name: seconds for name, seconds in pulse.lap().items() if seconds} == dict(STEP) | {"load": 1.5}
    clock.now += 2.0
    assert pulse.lap()["load"] == 2.0
    assert pulse.item()["seconds"] == dict(STEP) | {"start": 4.0, "load": 3.5}


def test_a_phase_marked_anew_has_moved(clock):
    pulse = Pulse(0, clock)
    pulse.phase("validate", 5)
    clock.now += 10.0
    pulse.phase("validate")
    clock.now += 1.0
    item = pulse.item()
    assert (item["since"], item["step"]) == (1.0, 5)


def test_it_beats_while_the_loop_hangs_and_says_its_end():
    items, two = [], threading.Event()

    def send(item):
        items.append(item["pulse"])
        if len(items) == 2:
            two.set()

    with Pulse().beating(send, every=0.01):
        assert two.wait(10)
    assert [item["phase"] for item in items[:2]] == ["start", "start"]
    assert items[-1]["phase"] == "end"
    count = len(items)
    time.sleep(0.05)
    assert len(items) == count
