import numpy as np
import pytest

from pipelines.data.events import BrokenEvents, Events, FrameRule, to_frames


def made(*rows: tuple[int, int, int, int], sensor: tuple[int, int] = (4, 4)) -> Events:
    """Events from rows of (t, x, y, on)."""
    t, x, y, on = np.array(rows).reshape(-1, 4).T
    return Events(t.astype(np.int64), x, y, on.astype(bool), sensor)


FIVE = made((0, 0, 0, 1), (1, 3, 0, 0), (2, 1, 1, 1), (3, 1, 0, 1), (100, 0, 3, 0))


def test_frames_of_equal_count_by_hand() -> None:
    """Five events, two steps: events 0, 1, 2 and 3, 4. A 4 x 4 sensor at 2 x 2: halves."""
    frames = to_frames(FIVE, FrameRule(2, 2, "count"))
    assert frames.dtype == np.uint8
    assert frames.tolist() == [
        [[[0, 1], [0, 0]], [[2, 0], [0, 0]]],
        [[[0, 0], [1, 0]], [[1, 0], [0, 0]]],
    ]


def test_frames_of_equal_time_by_hand() -> None:
    """0 to 100 microseconds, two steps: all but the last event lie in the first half."""
    frames = to_frames(FIVE, FrameRule(2, 2, "time"))
    assert frames.sum(axis=(2, 3)).tolist() == [[1, 3], [1, 0]]


def test_the_last_event_lies_in_the_last_frame_and_one_moment_is_one_frame() -> None:
    assert to_frames(made((0, 0, 0, 1), (9, 0, 0, 1)), FrameRule(10, 1, "time")).ravel().tolist() == [
        0,
        1,
        *[0] * 17,
        1,
    ]
    assert to_frames(made((7, 0, 0, 1), (7, 0, 0, 1)), FrameRule(2, 1, "time"))[0, 1, 0, 0] == 2


def test_every_event_counts_once_at_48_of_128() -> None:
    """Columns of 128 / 48 = 2 2/3 pixels gather 3, 3 and 2 of them."""
    x = np.arange(128)
    row = Events(x.astype(np.int64), x, np.zeros(128, int), np.ones(128, bool), (128, 128))
    frames = to_frames(row, FrameRule(1, 48))
    assert frames[0, 1, 0].tolist() == [3, 3, 2] * 16
    assert frames.sum() == 128


def test_counts_saturate() -> None:
    assert to_frames(made(*[(0, 0, 0, 1)] * 300), FrameRule(1, 1)).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("by", ["count", "time"])
def test_fewer_events_than_steps_leave_frames_empty(by: str) -> None:
    frames = to_frames(made((0, 0, 0, 1), (5, 0, 0, 1)), FrameRule(5, 1, by))  # type: ignore[arg-type]
    assert frames.shape == (5, 2, 1, 1)
    assert frames.sum() == 2


@pytest.mark.parametrize(
    ("events", "says"),
    [
        (made(), "no events"),
        (made((5, 0, 0, 1), (3, 0, 0, 1)), "backwards after event 0: from 5 to 3"),
        (made((0, 4, 0, 1)), "an event in column 4; the sensor has 0 to 3"),
        (made((0, 0, -1, 1)), "an event in row -1; the sensor has 0 to 3"),
    ],
)
def test_broken_events_are_refused(events: Events, says: str) -> None:
    with pytest.raises(BrokenEvents, match=says):
        to_frames(events, FrameRule(2, 2))


def test_between_takes_the_start_and_leaves_the_end() -> None:
    assert FIVE.between(1, 3).t.tolist() == [1, 2]
    for start, end in ((3, 3), (200, 300)):
        with pytest.raises(BrokenEvents, match=f"no events from {start} to {end}"):
            FIVE.between(start, end)


@pytest.mark.parametrize(("steps", "size", "by"), [(0, 48, "count"), (1, 0, "count"), (1, 48, "space")])
def test_a_rule_that_cannot_be(steps: int, size: int, by: str) -> None:
    with pytest.raises(ValueError, match="got"):
        FrameRule(steps, size, by)  # type: ignore[arg-type]
