"""Exchanges of gradients among ranks over gloo, under DDP with several buckets; `exchange_rank` is a rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)
SCRIPT = Path(__file__).with_name("exchange_rank.py")
ROUNDED = 1e-5  # of float32 sums in another order


def _ranks(kind, world, tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, str(rank), str(world), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(world)
    ]
    ended = [(process.communicate(timeout=100), process.returncode) for process in ranks]
    assert [code for _, code in ended] == [0] * world, "\n".join(err for (_, err), _ in ended)
    return [json.loads(out.splitlines()[-1]) for (out, _), _ in ended]


@pytest.mark.parametrize("world", [2, 3])
def test_signs_are_those_of_a_plain_reference(world, tmp_path):
    """Step for step: averages, residuals (what was sent and what was kept is the gradient), and whole steps."""
    found = _ranks("sign", world, tmp_path)
    assert len({each["digest"] for each in found}) == 1
    for each in found:
        assert max(each["signs"], each["others"], each["kept"]) < ROUNDED, found
    # what is left out comes later: with the whole step all has been sent, but for what bfloat16 rounds
    gap = found[0]["mean"]
    assert gap[5] < 0.01 < min(gap[:5])


@pytest.mark.parametrize("world", [2, 3])
def test_powersgd_takes_channels_last_and_parameters_without_axes(world, tmp_path):
    """Its first step is whole, since DDP then changes its buckets; the sixth is, since it says so."""
    found = _ranks("powersgd", world, tmp_path)
    assert len({each["digest"] for each in found}) == 1
    gap = found[0]["mean"]
    assert max(gap[0], gap[5]) < 0.01 < min(gap[1:5])
