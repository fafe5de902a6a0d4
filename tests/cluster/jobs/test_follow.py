"""The end of a followed job, and a log that comes in several streams; no head here."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.jobs import follow as following
from cluster.jobs.follow import _Printed, follow, report


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 130)],
)
def test_exit_codes(status: str, code: int | None, expected: int) -> None:
    from ray.job_submission import JobStatus

    details = SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="why")
    assert report("agmm-1", details, lambda _: None) == expected


def test_an_interrupt_leaves_the_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(following, "_print_log", interrupted)
    said: list[str] = []
    assert follow(SimpleNamespace(), "agmm-1", said.append) == 130  # type: ignore[arg-type]
    assert "agmm jobs logs --follow agmm-1" in said[0]
    assert "agmm jobs stop agmm-1" in said[0]


def test_a_new_stream_repeats_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    printed = _Printed()
    for stream in (["one\ntw"], ["one\n"], [], ["on", "e\nt", "wo\nthree\n"]):
        printed.restart()
        for text in stream:
            printed.write(text)
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
