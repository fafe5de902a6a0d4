"""How one check is run: whatever it does, one line comes of it."""

import threading

import pytest

from pipelines.doctor.check import Check, examine
from pipelines.errors import ServiceError


@pytest.mark.parametrize("limit", [None, 10.0])
def test_a_check_gives_its_line(limit):
    assert examine("disk", lambda: ("warn", "little\n  room.", "Make some."), limit) == Check(
        "disk", "warn", "little room.", "Make some."
    )


@pytest.mark.parametrize("limit", [None, 10.0])
def test_what_is_raised_is_a_failure_with_its_reason(limit):
    def foreseen():
        raise ServiceError("The disk is full.\n  Make room.")

    def unforeseen():
        raise KeyError("look")

    assert examine("disk", foreseen, limit) == Check("disk", "fail", "", "The disk is full. Make room.")
    found = examine("disk", unforeseen, limit)
    assert found.status == "fail"
    assert "KeyError: 'look'" in found.advice


def test_a_check_that_hangs_has_failed():
    release = threading.Event()

    def hang():
        release.wait(60)
        return "pass", "", ""

    found = examine("disk", hang, 0.05)
    release.set()
    assert found.status == "fail"
    assert "no result within" in found.detail
