"""`agmm landscape` on a tiny model: a cut grid goes on, another one is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from agmm.landscape import moved, random_directions
from pipelines import cli, registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.errors import UserError
from pipelines.evaluate import evaluate_model
from pipelines.landscape import Grid, _spread_images, landscape
from pipelines.network import build_network

GRID = Grid(points=3, span=0.5, images=21, seed=4)


@pytest.fixture
def model(tiny_config, tmp_path):
    """The folder of an untrained model."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    card = registry.ModelCard(name="tiny", model=tiny_config.model, data=tiny_config.data)
    registry.write_model(folder, checkpoints.model_tensors(build_network(tiny_config.model)), card)
    return str(folder)


def test_the_middle_is_the_model_and_a_corner_is_the_moved_one(model, tmp_path):
    result = landscape(model, None, GRID, tmp_path / "out", "")
    with np.load(tmp_path / "out" / "landscape.npz") as stored:
        axis, loss, top1, done = (stored[key] for key in ("axis", "loss", "top1", "done"))
    assert axis.tolist() == [-0.5, 0.0, 0.5]
    assert done.all()
    assert (tmp_path / "out" / "landscape.png").stat().st_size > 10_000
    itself = evaluate_model(model, None, "", print)
    assert loss[1, 1] == result["loss"] == pytest.approx(itself["loss"])
    assert top1[1, 1] == itself["top1"]

    opened = registry.load_model(model, "")
    with moved(opened.network, random_directions(opened.network, GRID.seed), (-0.5, 0.5)):
        registry.write_model(tmp_path / "model", checkpoints.model_tensors(opened.network), opened.card)
    assert loss[0, 2] == pytest.approx(evaluate_model(model, None, "", print)["loss"])


def test_few_images_are_of_all_classes(model, tiny_data):
    """The split is sorted by class, 7 images of each of 3."""
    opened = registry.load_model(model, "")
    labels = torch.cat([labels for _, labels in _spread_images(tiny_data, opened, 6, print)])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


class _Cut(Exception):
    """Stands for a kill."""


def test_a_cut_grid_goes_on_and_equals_a_straight_one(model, tmp_path, monkeypatch):
    landscape(model, None, GRID, tmp_path / "straight", "")
    calls, real = [], moved

    def cut(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise _Cut
        return real(*arguments)

    monkeypatch.setattr("pipelines.landscape.moved", cut)
    with pytest.raises(_Cut):
        landscape(model, None, GRID, tmp_path / "cut", "")
    said = []
    landscape(model, None, GRID, tmp_path / "cut", "", said.append)
    assert "4 of 9 points were there" in said
    assert len(calls) == 5 + 5
    with np.load(tmp_path / "straight/landscape.npz") as one, np.load(tmp_path / "cut/landscape.npz") as other:
        assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("change", [{"seed": 5}, {"points": 5}, {"span": 0.25}, {"images": 12}])
def test_a_folder_of_another_landscape_is_refused(model, tmp_path, change):
    small = Grid(points=3, images=3)
    landscape(model, None, small, tmp_path / "out", "")
    with pytest.raises(UserError, match=rf"another landscape.*{next(iter(change))}.*--out"):
        landscape(model, None, replace(small, **change), tmp_path / "out", "")


def test_other_weights_are_refused(model, tmp_path):
    small = Grid(points=3, images=3)
    landscape(model, None, small, tmp_path / "out", "")
    opened = registry.load_model(model, "")
    with torch.no_grad():
        opened.network.head.bias.add_(1)
    registry.write_model(tmp_path / "model", checkpoints.model_tensors(opened.network), opened.card)
    with pytest.raises(UserError, match="weights_sha256"):
        landscape(model, None, small, tmp_path / "out", "")


def test_what_is_no_landscape_is_refused(model, tmp_path):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out/landscape.npz"
    np.save(tmp_path / "plain.npy", np.zeros(3))
    np.savez(tmp_path / "listed.npz", settings=np.array("[1]"))
    others = [(tmp_path / name).read_bytes() for name in ("plain.npy", "listed.npz")]
    for content in (b"notes", b"", *others):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a landscape"):
            landscape(model, None, GRID, tmp_path / "out", "")
    with pytest.raises(UserError, match="Cannot write"):
        landscape(model, None, GRID, tmp_path / "out/landscape.npz", "")
    with FileLock(tmp_path / "out/landscape.lock"), pytest.raises(UserError, match="Another process"):
        landscape(model, None, GRID, tmp_path / "out", "")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--points", "4"),
        ("--points", "1"),
        ("--points", "100001"),
        ("--span", "0"),
        ("--span", "nan"),
        ("--span", "1e300"),
        ("--images", "0"),
        ("--seed", str(2**70)),
    ],
)
def test_a_grid_that_cannot_be_is_refused(model, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        cli.main(["landscape", model, "--out", str(tmp_path / "out"), option, value])
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


def test_the_command_prints_where_its_files_are(model, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["landscape", model, "--out", str(tmp_path / "out"), "--points", "3", "--images", "3", "--json"])
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["lowest_loss"] <= result["loss"] <= result["highest_loss"]
    assert result["picture"] == str(tmp_path / "out/landscape.png")
