"""A trained analogue network to a spiking one, by the command line: no Ray, the torch loader, folders."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import cli
from pipelines.checkpoints.checkpoint import model_tensors
from pipelines.config import parse_config
from pipelines.convert import _calibration_batches
from pipelines.data.beton import BetonReader
from pipelines.data.build import build
from pipelines.data.events import Events, FrameRule
from pipelines.data.samples import Sample, Source
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.network import build_network, normalise
from pipelines.registry import ModelCard, read_model, write_model
from pipelines.storage import open_store

ANALOGUE = {"time_steps": 1, "method": "vanilla", "neuron": {"kind": "relu"}}


def _config(tree, **model):
    return parse_config(tree | {"model": tree["model"] | ANALOGUE | model}, origin="test")


def _agmm(*words):
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


@pytest.fixture
def untrained(tiny_tree, tmp_path):
    """Writes a model with fresh weights; returns its folder."""

    def write(**model):
        config, folder = _config(tiny_tree, **model), tmp_path / "model"
        folder.mkdir()
        write_model(
            folder,
            model_tensors(build_network(config.model)),
            ModelCard(name="tiny", model=config.model, data=config.data, metrics={"top1": 0.5}),
        )
        return folder

    return write


def test_train_convert_evaluate(tiny_tree, tmp_path, capsys):
    config, trained, converted = _config(tiny_tree), tmp_path / "trained", tmp_path / "a" / "converted"
    outside = Outside(open_store(str(trained)), lambda *_: None, lambda _: None, lambda _: None)
    analogue = run(config, World(0, 1, torch.device("cpu")), outside, Path(config.data.uri), "test")
    assert analogue["top1"] > 0.6

    assert _agmm("convert", trained, "--out", converted, "--time-steps", 64, "--images", 20, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["model"], made["time_steps"], made["layers"]) == (str(converted), 64, 16)
    assert 0 < made["level_min"] < made["level_max"]
    assert [path.name for path in converted.parent.iterdir()] == ["converted"]
    card = read_model(converted, "converted").card
    assert (card.model.neuron.kind, card.model.time_steps, card.metrics) == ("rate_if", 64, {})

    assert _agmm("evaluate", converted, "--time-steps", "64, 2", "--json") == 0
    few, many = json.loads(capsys.readouterr().out)["rows"]
    assert (few["time_steps"], many["time_steps"], many["count"]) == (2, 64, 21)
    assert 0 < many["firing"] < 1
    assert many["sops"] > few["sops"] > 0
    assert abs(many["loss"] - analogue["loss"]) < 0.5 * abs(few["loss"] - analogue["loss"])
    assert many["top1"] == pytest.approx(analogue["top1"], abs=2 / 21)
    assert _agmm("evaluate", converted, "--time-steps", "2") == 0
    assert re.search(rf"^top1 +{few['top1']:.4g}$", capsys.readouterr().out, flags=re.M)
    assert _agmm("evaluate", converted, "--time-steps", "1,2") == 0
    assert f"2  {few['top1']:.4g}" in capsys.readouterr().out


def test_calibration_sees_unaugmented_images_of_all_classes(tiny_config):
    """The tiny set is sorted by class; images come whole, as evaluation would see them, not as training's crops."""
    folder, data = Path(tiny_config.data.uri), tiny_config.data
    batches = list(_calibration_batches(folder, data, 15))
    assert [len(batch) for batch in batches] == [12, 3]
    images = torch.cat(batches)
    brightest = images.mean((2, 3)).argmax(1)
    assert sorted(brightest.unique().tolist()) == [0, 1, 2]
    every = torch.cat(list(_calibration_batches(folder, data, 1000)))
    reader = BetonReader(folder / "train.beton")
    stored = torch.from_numpy(np.stack([reader.stored(i).reshape(16, 16, 3) for i in range(48)])).permute(0, 3, 1, 2)
    torch.testing.assert_close(every, normalise(stored, data, torch.device("cpu")))


@pytest.mark.parametrize(("percentile", "message"), [("nan", "at most 100, got nan"), ("1e-300", "would never fire")])
def test_a_percentile_that_leaves_layers_silent_is_refused(untrained, tmp_path, capsys, percentile, message):
    assert _agmm("convert", untrained(), "--out", tmp_path / "out", "--percentile", percentile) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"neuron": {"kind": "lif"}}, "has lif neurons; only relu"),
        ({"method": "agmm"}, "a gate with an alpha per step, which means nothing"),
        ({"norm": "tebn"}, "a norm with a factor per step"),
    ],
)
def test_what_has_no_rate_is_refused(untrained, tmp_path, capsys, model, message):
    assert _agmm("convert", untrained(**model), "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--percentile", "0"], "0<x<=100"),
        (["--percentile", "101"], "0<x<=100"),
        (["--time-steps", "0"], "1<=x<=1024"),
        (["--images", "0"], "x>=1"),
        (["--data", "nowhere"], "nowhere"),
        (["--out", "."], "is there already"),
    ],
)
def test_settings_out_of_range_are_refused(untrained, tmp_path, capsys, words, message):
    assert _agmm("convert", untrained(), "--out", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("steps", ["0", "2,x", "1025", ",", "-1"])
def test_time_steps_that_are_no_numbers_are_refused(untrained, capsys, steps):
    assert _agmm("evaluate", untrained(), "--time-steps", steps) == 2
    assert "numbers from 1 to 1024" in capsys.readouterr().err


def test_another_T_is_refused_where_parameters_belong_to_steps(untrained, capsys):
    folder = untrained(method="agmm", neuron={"kind": "lif"}, time_steps=2)
    assert _agmm("evaluate", folder, "--time-steps", "2,4") == 2
    assert "--time-steps 4: The network was trained for 2 time steps" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_leaves_nothing(untrained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert _agmm("convert", untrained(), "--out", tmp_path / "file" / "out") == 1
    assert "Cannot write" in capsys.readouterr().err


def test_recordings_have_their_own_T(tiny_tree, untrained, tmp_path, capsys):
    def events(label):
        return Events(np.arange(9), *np.full((2, 9), label), np.zeros(9, dtype=bool), (16, 16))

    samples = [Sample(label, str(label), partial(events, label)) for label in (0, 1, 2)]
    rule = FrameRule(3, 16)
    build(Source("tiny", "test", ("a", "b", "c"), {"train": samples, "val": samples}, 0, rule), tmp_path / "data")
    folder = untrained(in_chans=2, time_steps=1)
    assert _agmm("convert", folder, "--out", tmp_path / "out", "--data", tmp_path / "data") == 2
    assert "has event frames" in capsys.readouterr().err
    assert _agmm("evaluate", folder, "--time-steps", "3,4", "--data", tmp_path / "data") == 2
    assert "frames of 3 time steps, the network 4" in capsys.readouterr().err
