"""Gradients that DDP has averaged are NaN on all ranks, whatever is sent: all name the rank that they come from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.timeout(120)
SCRIPT = Path(__file__).with_name("nan_rank.py")


@pytest.mark.parametrize("kind", ["fp32", "bf16", "powersgd", "sign"])
def test_all_ranks_name_the_one_whose_gradients_are_not_finite(tiny_tree, tmp_path, kind):
    tiny_tree["run"]["gradients"] = {"kind": kind, "start": 0}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_tree))
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(recipe), str(rank), "2", str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=100) for process in ranks]
    first, second = (out for out, _ in ended)
    assert first == second, ended
    assert first.startswith("the gradients are not finite: first in stages.1.0.conv.weight on the way back, in ")
    assert "at step 3 on rank 1; the weights were not changed." in first
