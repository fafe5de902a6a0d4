"""Several ranks over gloo, without Ray: unequal slices, equal metrics, exact resume."""

import hashlib
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import torch
import yaml

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.evaluate import evaluate_model
from pipelines.storage import open_store

pytestmark = pytest.mark.timeout(240)
SCRIPT = Path(__file__).with_name("distributed_run.py")


@pytest.fixture
def launch(tiny_tree, tmp_path):
    """Run WORLD ranks of the tiny recipe to their end; returns each rank's metrics, or nothing of ranks that died."""

    def call(world, folder, *, die_after=0, **sections):
        tree = {**tiny_tree, **{key: {**tiny_tree[key], **value} for key, value in sections.items()}}
        tree["checkpoint"] = {**tree["checkpoint"], "uri": str(folder)}
        recipe = tmp_path / f"{uuid.uuid4().hex}.yaml"
        recipe.write_text(yaml.safe_dump(tree))
        command = [sys.executable, str(SCRIPT), str(recipe)]
        meeting = str(tmp_path / uuid.uuid4().hex)
        env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(world), meeting, *([str(die_after)] if die_after and rank == 0 else [])],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=env,
            )
            for rank in range(world)
        ]
        ended = [(process.communicate(timeout=200), process.returncode) for process in ranks]
        if die_after:
            assert ended[0][1] == 9, ended[0][0][1]
            return []
        assert [code for _, code in ended] == [0] * world, "\n".join(err for (_, err), _ in ended)
        return [json.loads(out.splitlines()[-1]) for (out, _), _ in ended]

    return call


def _files(folder):
    store = open_store(str(folder))
    newest = folder / checkpoints.committed(store)[-1]
    parts = ("model", "optimizer", "signs")
    return {part: hashlib.sha256((newest / f"{part}.safetensors").read_bytes()).hexdigest() for part in parts}


def test_three_ranks_with_unequal_slices_resume_byte_for_byte(launch, tmp_path):
    """8 images on 3 ranks are 3 + 3 + 2; three, because two cannot tell in which order gradients are added."""
    sections = {"data": {"batch_size": 8}, "optim": {"epochs": 3}}
    metrics = launch(3, tmp_path / "straight", **sections)
    assert [row["count"] for row in metrics] == [21, 21, 21]
    assert metrics[0] == metrics[1] == metrics[2]
    assert metrics[0]["time/exchange"] > 0
    every = {"checkpoint": {"every": 4}}
    launch(3, tmp_path / "cut", die_after=1, **sections, **every)
    launch(3, tmp_path / "cut", **sections, **every)
    assert _files(tmp_path / "straight") == _files(tmp_path / "cut")


@pytest.mark.parametrize("kind", ["powersgd", "sign"])
def test_what_is_not_sent_yet_survives_a_kill(launch, tmp_path, kind):
    """A checkpoint is due after each step, and waits for one that sends all; where none is, nothing changes."""
    run = {"gradients": {"kind": kind, "start": 0, "whole_every": 3}}
    metrics = launch(2, tmp_path / "straight", optim={"epochs": 2}, run=run)
    assert metrics[0]["time/exchange"] > 0
    often = {"optim": {"epochs": 2}, "run": run, "checkpoint": {"every": 1}}
    launch(2, tmp_path / "cut", die_after=1, **often)
    launch(2, tmp_path / "cut", **often)
    assert _files(tmp_path / "straight") == _files(tmp_path / "cut")
    steps = {int(name.rpartition("-")[2]) for name in checkpoints.committed(open_store(str(tmp_path / "cut")))}
    assert {3, 8} <= steps <= {3, 4, 6, 8}


def test_unequal_slices_weigh_by_their_size(launch, tmp_path):
    """One step on 2 + 1 images equals one step on 3.

    The head starts at zero (see `distributed_run`), so the gradient of its bias is the mean of 1/K - target over the
    whole batch, whatever BN makes of each rank's slice.
    """
    sections = {"data": {"batch_size": 3}, "optim": {"epochs": 1, "max_steps": 1}}
    launch(1, tmp_path / "one", **sections)
    launch(2, tmp_path / "two", **sections)
    one, two = (
        checkpoints.load(open_store(str(tmp_path / name)), "attempt-0001-step-000000001").model["head.bias"]
        for name in ("one", "two")
    )
    assert one.abs().max() > 0.01
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_all_ranks_validate_the_network_that_is_stored(launch, tmp_path):
    """Running statistics differ between ranks; validation and checkpoint both take rank 0's.

    Costs and firing are counted over both ranks' images, so that they are those of the whole split.
    """
    mixed = {"augment": {"crop": "pad", "padding": 2, "mix": {"mixup": 0.2}}}
    model = {"method": "q_snn", "norm": "tebn", "neuron": {"kind": "plif"}}
    (first, second) = launch(2, tmp_path / "two", optim={"epochs": 1}, data=mixed, model=model)
    assert first == second
    alone = evaluate_model(str(tmp_path / "two"), None, "", print)
    assert (alone["top1"], alone["count"]) == (first["top1"], 21)
    assert alone["loss"] == pytest.approx(first["loss"], rel=1e-5)
    costs = {f"energy_mj/{name}": value for name, value in alone["energy_mj"].items()}
    costs |= {key: alone[key] for key in ("sops", "macs", "size_mb", "firing")}
    assert {key: first[key] for key in costs} == costs
