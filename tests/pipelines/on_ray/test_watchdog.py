"""Paper cases of `judge`, with now = 1000 s, and what a watchdog says of pulses that it takes."""

import pytest

from pipelines.on_ray.watchdog import RESTART, TAG, Beat, Watchdog, judge

NOW = 1000.0


def _beat(rank, phase="exchange", since=1.0, *, step=7, done=6, age=2.0, busy=()):
    return Beat(rank, f"host{rank}", 100 + rank, step, phase, since, done, NOW - age, busy)


def _judged(*beats):
    return [(finding.kind, finding.rank) for finding in judge({beat.rank: beat for beat in beats}, NOW)]


@pytest.mark.parametrize(
    ("beats", "found"),
    [
        ([], []),
        ([_beat(0), _beat(1), _beat(2)], []),
        # the others wait for it: 44 + 2 s, and 42 + 2 s
        ([_beat(0, since=44), _beat(1, "load", 44), _beat(2, since=44)], [("hung", 1)]),
        ([_beat(0, since=42), _beat(1, "load", 42), _beat(2, since=42)], []),
        ([_beat(0, since=60), _beat(1, "forward", 60)], [("hung", 1)]),
        ([_beat(0, "gather", 60), _beat(1, "validate", 60)], [("hung", 1)]),
        # a checkpoint takes as long as its store
        ([_beat(0, "commit", 590), _beat(1, since=590)], []),
        ([_beat(0, "commit", 600), _beat(1, since=600)], [("hung", 0)]),
        ([_beat(0, "commit", 60), _beat(1, "load", 60), _beat(2, since=60)], [("hung", 1)]),
        # a data set may take hours on one node, and the others wait for it
        ([_beat(0, "gather", 9000, step=0, done=0), _beat(1, "stage", 9000, step=0, done=0)], []),
        ([_beat(0, since=60), _beat(1, "load", 60), _beat(2, "load", 60)], [("hung", 1), ("hung", 2)]),
        # it moves, though slowly
        ([_beat(0, since=60), _beat(1, "load", 10)], []),
        # nobody waits as far as can be seen, but one is behind: DDP may wait in a forward pass too
        ([_beat(0, "forward", 60), _beat(1, "load", 60)], [("hung", 1)]),
        ([_beat(0, "load", 60), _beat(1, "load", 60, step=6)], [("hung", 1)]),
        # a first step compiles, as long as on no other
        ([_beat(0, since=60, done=0), _beat(1, "forward", 60, done=0)], []),
        ([_beat(0, since=99, done=0), _beat(1, "forward", 99, done=0)], [("hung", 1)]),
        ([_beat(0, "start", 500, done=0), _beat(1, "start", 500, done=0)], []),
        ([_beat(0, "forward", 500, done=0), _beat(1, "forward", 500, done=0)], []),
        ([_beat(0, "gather", 99, step=0, done=0), _beat(1, "start", 99, step=0, done=0)], [("hung", 1)]),
        # silent: stopped or lost
        ([_beat(0), _beat(1, age=31)], [("hung", 1)]),
        ([_beat(0), _beat(1, age=29)], []),
        ([_beat(0, "start", done=0), _beat(1, "start", done=0, age=31)], [("hung", 1)]),
        # who waits for a silent one is not to blame, nor does it stand still with all
        ([_beat(0, since=200), _beat(1, age=202)], [("hung", 1)]),
        # all are silent: only later, since the driver may be the one who does not hear
        ([_beat(0, age=50), _beat(1, age=50)], []),
        ([_beat(0, age=61)], [("hung", 0)]),
        # all stand still
        ([_beat(0, since=89), _beat(1, since=89)], [("hung", -1)]),
        ([_beat(0, since=87), _beat(1, since=87)], []),
        ([_beat(0, "commit", 590)], []),
        ([_beat(0, "commit", 600)], [("hung", -1)]),
        # slow: twice in a row five times the others' median
        ([_beat(0, busy=(0.1, 0.1)), _beat(1, busy=(0.5, 0.5))], [("slow", 1)]),
        ([_beat(0, busy=(0.1, 0.1)), _beat(1, busy=(0.49, 0.9))], []),
        ([_beat(0, busy=(0.1, 0.1)), _beat(1, busy=(0.5,))], []),
        ([_beat(0, busy=(0.1, 0.1)), _beat(1, busy=(0.2, 0.2)), _beat(2, busy=(0.6, 1.0))], []),
        ([_beat(0, busy=(0.1, 0.1)), _beat(1, busy=(0.1, 0.2)), _beat(2, busy=(0.7, 0.7))], [("slow", 2)]),
        ([_beat(0, busy=(0.0001, 0.0001)), _beat(1, busy=(0.004, 0.004))], []),
        ([_beat(0, busy=(9.0, 9.0))], []),
    ],
)
def test_judged_by_hand(beats, found):
    assert _judged(*beats) == found


def test_findings_say_who_where_and_how_long():
    hung, slow = judge(
        {
            0: _beat(0, since=60, busy=(0.1, 0.1)),
            1: _beat(1, "load", 60),
            2: _beat(2, since=60, busy=(0.6, 0.8)),
        },
        NOW,
    )
    assert hung.text == (
        "rank 1 (host host1, pid 101) hangs: it has been in phase load of step 7 for 62 s, and the others wait for it"
    )
    assert slow.text == (
        "rank 2 (host host2, pid 102) is slow: its own part of a step (loading and forward pass) takes 700 ms, "
        "the others' 100 ms"
    )


def test_a_long_save_is_called_by_its_name():
    (alone,) = judge({0: _beat(0, "commit", 600)}, NOW)
    (waited_for,) = judge({0: _beat(0, "commit", 600), 1: _beat(1, since=600)}, NOW)
    assert alone.text.endswith("rank 0 (host host0, pid 100) in phase commit of step 7 (storing a checkpoint)")
    assert waited_for.text == (
        "rank 0 (host host0, pid 100) is storing a checkpoint of step 7, for 602 s now, and the others wait for it"
    )


class _Stage:
    """A watchdog on a clock of the test's own, and what it has said and tagged."""

    def __init__(self):
        self.now, self.said, self.tags = 0.0, [], []
        self.dog = Watchdog(self.said.append, lambda key, value: self.tags.append((key, value)), lambda: self.now)

    def run(self, seconds, *pulses):
        """Let time pass, with these pulses and a look every 5 s."""
        for _ in range(0, seconds, 5):
            self.now += 5
            for pulse in pulses:
                self.dog.take({"pulse": pulse})
            self.dog.look()


def _pulse(rank, *, phase="exchange", since=1.0, pid=None, busy=0.1, steps=3):
    own = {"rank": rank, "host": "h", "pid": pid or 100 + rank, "life": f"{rank}-{pid}"}
    return own | {"step": 9, "phase": phase, "since": since, "busy": busy, "steps": steps, "done": 8}


def test_a_stopped_rank_is_said_once_then_that_it_moves_and_said_again():
    stage = _Stage()
    stage.run(20, _pulse(0), _pulse(1))
    stage.run(30, _pulse(0))
    assert stage.said == []
    stage.run(60, _pulse(0))
    (line,) = stage.said
    assert line.startswith("watchdog: rank 1 (host h, pid 101) hangs: it has not been heard of for 35 s")
    assert stage.tags == [(TAG, line.removeprefix("watchdog: "))]
    stage.run(5, _pulse(0), _pulse(1))
    assert stage.said[1:] == ["watchdog: rank 1 moves again"]
    assert stage.tags[1] == (TAG, f"over: {stage.tags[0][1]}")
    stage.run(60, _pulse(0))
    assert stage.said[2] == line


def test_a_slow_rank_is_said_within_two_windows():
    stage = _Stage()
    stage.run(10, _pulse(0), _pulse(1, busy=0.6))
    (line,) = stage.said
    assert "rank 1 (host h, pid 101) is slow" in line
    stage.run(20, _pulse(0), _pulse(1))
    assert stage.said[1:] == ["watchdog: rank 1 is as fast as the others again"]


def test_windows_without_a_step_are_left_out():
    stage = _Stage()
    stage.run(5, _pulse(0), _pulse(1, busy=0.6))
    stage.run(20, _pulse(0), _pulse(1, busy=0.0, steps=0))
    assert stage.said == []
    stage.run(5, _pulse(0), _pulse(1, busy=0.6))
    assert "is slow" in stage.said[0]


def test_fewer_workers_after_a_restart_leave_no_ghost():
    stage = _Stage()
    stage.run(10, _pulse(0), _pulse(1))
    stage.run(100, _pulse(0, pid=200))
    assert stage.said == []


def test_a_restart_ends_what_was_found():
    stage = _Stage()
    stage.run(10, _pulse(0), _pulse(1))
    stage.run(40, _pulse(0))
    stage.run(5, _pulse(0, pid=200))
    assert stage.said[1:] == ["watchdog: the process of rank 1 is gone"]


def test_a_restart_that_takes_long_names_nobody_though_late_words_come():
    stage = _Stage()
    stage.run(10, _pulse(0), _pulse(1))
    stage.dog.take(RESTART)
    stage.run(10, _pulse(0), _pulse(1))  # before they are ended
    stage.run(400)
    stage.run(100, _pulse(0, pid=200))
    assert stage.said == []


def test_what_was_found_of_all_ranks_ends_with_them():
    stage = _Stage()
    stage.run(5, _pulse(0, since=100.0), _pulse(1, since=100.0))
    stage.dog.take(RESTART)
    stage.run(5)
    assert stage.said[1:] == ["watchdog: the processes of all ranks are gone"]


def test_a_ghost_of_older_workers_does_not_stay():
    stage = _Stage()
    stage.dog.take(RESTART)
    stage.dog.take({"pulse": _pulse(3)})  # unheard of until then, and ended without a word
    stage.run(600, _pulse(0, pid=200), _pulse(1, pid=201))
    assert stage.said[0].startswith("watchdog: rank 3 ")
    assert stage.said[1:] == ["watchdog: the process of rank 3 is gone"]


def test_a_rank_that_stays_stopped_stays_named():
    stage = _Stage()
    stage.run(10, _pulse(0), _pulse(1))
    stage.run(900, _pulse(0))
    assert len(stage.said) == 1


def test_ranks_that_ended_are_not_missed():
    stage = _Stage()
    stage.run(10, _pulse(0), _pulse(1))
    stage.run(5, _pulse(0), _pulse(1, phase="end"))
    stage.run(100, _pulse(0))
    stage.run(5, _pulse(0, phase="end"))
    stage.run(100)
    assert stage.said == []


def test_a_driver_that_was_stopped_blames_nobody():
    stage = _Stage()
    stage.run(10, _pulse(0), _pulse(1))
    stage.now += 500
    stage.dog.look()
    stage.run(10, _pulse(0), _pulse(1))
    assert stage.said == []
