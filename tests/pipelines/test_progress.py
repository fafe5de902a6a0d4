import io
import sys
import threading

import pytest

from pipelines.cli.output import say
from pipelines.on_ray import board
from pipelines.progress import Progress, clock

ITEM = {
    "epoch": 1,
    "epochs": 2,
    "step": 5,
    "total": 9,
    "loss": 0.5,
    "top1": 0.25,
    "images_per_second": 1234.5,
    "mfu": 0.314,
    "eta": 61,
}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3600, "1:00:00"), (90061, "25:01:01"), (-1, "0:00:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_a_plain_line_says_where_the_run_is():
    line = board.describe(ITEM)
    assert line == "epoch 1/2  step 5/9  loss 0.5000  top1 0.250  1234 images/s  mfu 0.31  ETA 0:01:01"


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


class _Broken(io.StringIO):
    """Standard error on a full disk: what is written raises."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal, self.tried = terminal, 0

    def isatty(self):
        return self.terminal

    def write(self, _):
        self.tried += 1
        raise OSError(28, "No space left on device")


class _Queue:
    """Gives these items, then is empty."""

    def __init__(self, *items):
        self.items = list(items)

    def get(self, timeout):
        from ray.util.queue import Empty

        if not self.items:
            raise Empty
        return self.items.pop(0)


@pytest.mark.parametrize("terminal", [False, True])
def test_what_cannot_be_shown_or_kept_does_not_hold_up_what_comes_after(monkeypatch, terminal):
    broken, heard, failed = _Broken(terminal), [], []

    def listen(item):
        heard.append(item["row"])
        raise OSError("the disk is full")

    monkeypatch.setattr(sys, "stderr", broken)
    watched = board.Board({"row": listen}, _Queue({"say": "a line"}, {"row": 1}, ITEM, {"row": 2}, {"failed": "why"}))
    monkeypatch.setattr(board.Board, "fail", lambda _, reason: failed.append(reason))
    done = threading.Event()
    done.set()
    board._draw_all(watched, done, board._canvas(9))
    assert broken.tried
    assert (heard, failed) == ([1, 2], ["why"])


def test_words_to_nobody_do_not_hurt(monkeypatch):
    broken = _Broken(terminal=False)
    monkeypatch.setattr(sys, "stderr", broken)
    say("a line")
    assert broken.tried


class _FullQueue:
    def put(self, _item, **_waiting):
        from ray.util.queue import Full

        raise Full


def test_a_driver_that_is_behind_does_not_hurt():
    board.send(_FullQueue(), ITEM)


def test_short_work_says_nothing(capsys):
    with Progress(3, "work", "image") as progress:
        progress.advance(3)
    assert progress.done == 3
    assert capsys.readouterr().err == ""
