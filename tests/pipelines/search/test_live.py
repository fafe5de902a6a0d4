"""The live view: what a person reads in a log and on a terminal, and that a stderr which fails ends nothing."""

import io
import os
import pty
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipelines.search.live import LiveView, Row, Standing, cell, describe

FIELDS = {
    "leak": 0.123456,
    "threshold": 1.23456,
    "surrogate_width": 1.7,
    "lr": 1.234e-05,
    "weight_decay": 0.000512345,
    "time_steps": 4,
    "method": "full_precision",
    "gate_scope": "channel",
}


def _standing(fields=3, rows=2):
    values = dict(list(FIELDS.items())[:fields])
    table = [Row(number, values, number, 0.5 + number / 100, 1234.5, 3700) for number in range(1, rows + 1)]
    return Standing(3, 16, "top1 0.8123, trial 2 (leak 0.31)", "11 trials to start, 90 epochs", 4000.0, table)


@pytest.fixture
def stderr(monkeypatch):
    """Put a stream in the place of sys.stderr; pytest has its own there while fixtures are made."""

    def put(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


def _passed(view, seconds):
    view._drawn -= seconds


def test_a_log_gets_a_few_lines_now_and_then(stderr):
    log = stderr(io.StringIO())
    view = LiveView("search", "top1")
    with view.shown():
        for _ in range(3):
            view.draw(_standing)
        once = log.getvalue()
        _passed(view, 29)
        view.draw(_standing)
        assert log.getvalue() == once
        _passed(view, 1)
        view.draw(_standing)
        assert len(log.getvalue()) == 2 * len(once)
        view.say("trial 1 [bold]ended[/]")
    lines = [line.rstrip() for line in once.splitlines()]
    assert lines[:2] == ["search: 3 of 16 trials have ended, 2 run", "best: top1 0.8123, trial 2 (leak 0.31)"]
    assert lines[2] == "0:00:00 gone, ETA 1:06:40, left: 11 trials to start, 90 epochs"
    assert lines[3].split() == ["trial", "leak", "threshold", "surrogate_width", "epoch", "top1", "images/s", "ETA"]
    assert lines[4].split() == ["1", "0.1235", "1.235", "1.7", "1", "0.51", "1234", "1:01:40"]
    assert log.getvalue().endswith("trial 1 [bold]ended[/]\n")


@pytest.mark.parametrize("fields", range(1, 9))
def test_a_table_of_any_space_is_readable_in_100_columns(stderr, fields):
    log = stderr(io.StringIO())
    LiveView("search", "energy_mj").draw(lambda: _standing(fields))
    shown = log.getvalue()
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    rows = [line.split() for line in shown.splitlines()[3:]]
    assert [row[0] for row in rows if row[0] in ("trial", "1", "2")] == ["trial", "1", "2"]
    words = " ".join(shown.split())
    for name in list(FIELDS)[:fields]:
        assert name in words
        assert words.count(cell(FIELDS[name])) >= 2


def test_nothing_to_tell_is_told_too(stderr):
    log = stderr(io.StringIO())
    LiveView("search", "top1").draw(lambda: Standing(0, 16, "", "16 trials to start", None))
    assert [line.rstrip() for line in log.getvalue().splitlines()] == [
        "search: 0 of 16 trials have ended, 0 run",
        "best: none yet",
        "0:00:00 gone, ETA -, left: 16 trials to start",
    ]


@contextmanager
def _terminal(monkeypatch):
    """Both ends of a terminal, the program's as sys.stderr; what was drawn is read without waiting."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    master, slave = pty.openpty()
    os.set_blocking(master, False)
    stream = os.fdopen(slave, "w", buffering=1)
    monkeypatch.setattr(sys, "stderr", stream)
    try:
        yield master
    finally:
        for close in (stream.close, lambda: os.close(master)):
            with suppress(OSError):
                close()


def _read(master, until):
    """What comes out of a terminal up to some words; it comes a moment after it was written."""
    found, deadline = "", time.monotonic() + 10
    while until not in found:
        assert time.monotonic() < deadline, found
        with suppress(BlockingIOError):
            found += os.read(master, 1 << 16).decode()
    return found


def test_a_terminal_keeps_the_table_and_lines_go_above_it(monkeypatch):
    with _terminal(monkeypatch) as master:
        view = LiveView("search", "top1")
        with view.shown():
            view.draw(_standing)
            drawn = _read(master, until="   2  0.52 ")
            view.draw(_standing)  # a moment later
            view.say("trial 7 finished")
            said = _read(master, until="   2  0.52 ")
    assert drawn.count("3 of 16 trials have ended") == 1
    assert "surrogate_width" in drawn
    assert said.index("trial 7 finished") < said.index("3 of 16")
    assert "\x1b[2K" in said  # the table is drawn in its old place


@pytest.mark.parametrize("gone", ["before", "meanwhile"])
def test_a_terminal_that_goes_ends_nothing(monkeypatch, gone):
    with _terminal(monkeypatch) as master:
        view = LiveView("search", "top1")
        if gone == "before":
            os.close(master)
        with view.shown():
            view.draw(_standing)
            if gone == "meanwhile":
                os.close(master)
            view.say("trial 1 finished")
            _passed(view, 1)
            view.draw(_standing)


def _closed():
    stream = io.StringIO()
    stream.close()
    return stream


def _full():
    return Path("/dev/full").open("w", buffering=1)


def _pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


@pytest.mark.parametrize("broken", [_closed, _full, _pipe_without_reader])
def test_a_stderr_that_fails_ends_nothing_and_leaves_stdout_alone(stderr, capfd, broken):
    stream = stderr(broken())
    view = LiveView("search", "top1")
    with view.shown():
        view.say("trial 1 finished")
        view.draw(_standing)
    print("the result", flush=True)
    assert capfd.readouterr().out == "the result\n"
    with suppress(OSError):
        stream.close()


def test_without_a_stderr_nothing_is_drawn_on_stdout(stderr, capsys):
    stderr(None)
    view = LiveView("search", "top1")
    with view.shown():
        view.say("trial 1 finished")
        view.draw(_standing)
    assert capsys.readouterr().out == ""


def test_values_in_words():
    assert describe({"leak": 0.123456, "time_steps": 4, "method": "agmm"}) == "leak 0.1235, time_steps 4, method agmm"
    assert (cell(None), cell(float("nan")), cell(True), cell(1e-5)) == ("-", "nan", "True", "1e-05")
