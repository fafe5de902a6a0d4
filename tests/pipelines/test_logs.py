"""What is said, as a person and as a machine reads it."""

import json
import logging

import pytest

from pipelines import cli, logs
from pipelines.loop.keeping import ATTEMPT_TAG
from pipelines.loop.pulse import Pulse
from pipelines.on_ray import board
from pipelines.on_ray.rank_log import RankLog

ITEM = {
    "epoch": 1,
    "epochs": 2,
    "step": 5,
    "total": 9,
    "loss": 0.5,
    "top1": 0.25,
    "images_per_second": 1234.5,
    "mfu": 0.3,
    "eta": 61,
}


@pytest.fixture
def lines(monkeypatch, capsys):
    monkeypatch.setenv("AGMM_LOG", "json")
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_its_run_while_that_is_open(lines):
    logs.line("before")
    with logs.of_run("abc"):
        board._print({"say": "a checkpoint"})
        board._print(ITEM)
    logs.line("after", level="ERROR")
    before, said, progress, after = lines()
    assert [each["message"] for each in (before, said, after)] == ["before", "a checkpoint", "after"]
    assert [each.get("run_id") for each in (before, said, progress, after)] == [None, "abc", "abc", None]
    assert progress["message"] == board.describe(ITEM)
    assert progress["step"] == 5 < progress["images_per_second"]
    assert (before["level"], after["level"]) == ("INFO", "ERROR")
    assert before["time"].endswith("+00:00")


def test_without_being_asked_it_is_plain(capsys):
    logs.line("a line", level="ERROR", step=5)
    assert capsys.readouterr().err == "a line\n"


def test_a_mistake_is_one_object(lines):
    with pytest.raises(SystemExit):
        cli.main(["recipes", "show", "no-such-recipe"])
    (error,) = lines()
    assert error["level"] == "ERROR"
    assert "no-such-recipe" in error["message"]


def test_a_rank_logs_what_it_says_with_its_run_and_step(caplog):
    caplog.set_level(logging.INFO, logger="agmm")
    pulse, told = Pulse(3), []
    log = RankLog("abc", 3, pulse)
    tell = log.listening(told.append)
    tell({"say": "100 % done"})
    tell({"tag": ATTEMPT_TAG, "value": "2"})
    pulse.phase("forward", 7)
    tell({"say": "later"})
    tell({"metrics": {}, "step": 7})
    first, second = caplog.records
    assert (first.getMessage(), first.run_id, first.rank, first.step) == ("100 % done", "abc", 3, 0)
    assert (second.getMessage(), second.attempt, second.step) == ("later", 2, 7)
    assert len(told) == 4
