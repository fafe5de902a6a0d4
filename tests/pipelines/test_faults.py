import subprocess
import sys
import time

import pytest

from pipelines import faults
from pipelines.errors import UserError


@pytest.fixture
def inject(monkeypatch):
    def call(text):
        monkeypatch.setattr(faults, "_faults", faults._parse(text))
        monkeypatch.setattr(faults, "_passed", faults.Counter())

    return call


def test_nothing_strikes_when_unset():
    faults.fault_point("anything")


def test_an_error_strikes_at_the_pass_that_is_named(inject):
    inject("a.b=error@2, c=error")
    faults.fault_point("a.b")
    with pytest.raises(OSError, match=r"injected at a\.b"):
        faults.fault_point("a.b")
    faults.fault_point("a.b")
    for _ in range(2):
        with pytest.raises(OSError, match="injected at c"):
            faults.fault_point("c")


def test_a_star_names_many_and_a_sleep_waits(inject):
    inject("checkpoint.*=sleep:0.05")
    started = time.perf_counter()
    faults.fault_point("checkpoint.write")
    assert time.perf_counter() - started >= 0.05


def test_a_crash_is_a_sigkill():
    code = "from pipelines.faults import fault_point; fault_point('x'); print('lived'); fault_point('x')"
    ended = subprocess.run(
        [sys.executable, "-c", code], env={"AGMM_FAULTS": "x=crash@2"}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) in ((-9, "lived"), (-9, ""))


@pytest.mark.parametrize("text", ["x", "x=burn", "x=crash@soon", "x=sleep:long"])
def test_a_fault_that_means_nothing_is_refused(text):
    with pytest.raises(UserError, match="AGMM_FAULTS"):
        faults._parse(text)
