import io
import sys

import pytest

from pipelines import board
from pipelines.progress import Progress, clock

ITEM = {
    "epoch": 1,
    "epochs": 2,
    "step": 5,
    "total": 9,
    "loss": 0.5,
    "top1": 0.25,
    "images_per_second": 1234.5,
    "eta": 61,
}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3600, "1:00:00"), (90061, "25:01:01"), (-1, "0:00:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_a_plain_line_says_where_the_run_is():
    line = board.describe(ITEM)
    assert line == "epoch 1/2  step 5/9  loss 0.5000  top1 0.250  1234 images/s  ETA 0:01:01"


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_with_the_figures(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with board._canvas(9) as draw:
        draw({"say": "a checkpoint"})
        draw(ITEM)
    shown = terminal.getvalue()
    assert "a checkpoint" in shown
    assert "epoch 1/2" in shown
    assert "5/9" in shown
    assert "1234 images/s" in shown


class _FullQueue:
    def put_nowait(self, _):
        from ray.util.queue import Full

        raise Full


def test_a_driver_that_is_behind_does_not_hurt():
    board.send(_FullQueue(), ITEM)


def test_short_work_says_nothing(capsys):
    with Progress(3, "work", "image") as progress:
        progress.advance(3)
    assert progress.done == 3
    assert capsys.readouterr().err == ""
