"""What a model's evaluation measures, and the figures of a run's measures."""

import json
import math

import pytest
import torch

from pipelines import cli, registry
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.config import parse_config
from pipelines.evaluate import evaluate_model
from pipelines.loop.measure import Measures
from pipelines.network import build_network
from pipelines.report import figures


@pytest.fixture
def model_folder(tiny_config, tmp_path):
    """An untrained model, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    network = build_network(tiny_config.model)
    card = registry.ModelCard(name="tiny", model=tiny_config.model, data=tiny_config.data)
    registry.write_model(folder, checkpoints.model_tensors(network), card)
    return folder


def test_evaluation_measures_what_an_image_costs(model_folder):
    result = evaluate_model(str(model_folder), None, "", print)
    assert result["count"] == 21
    assert 0 < result["firing"] < 1
    assert set(result["energy_mj"]) == {"horowitz_45nm", "paper_table2", "horowitz_45nm_sram", "horowitz_45nm_dram"}
    for key in ("macs", "sops", "weight_bytes"):
        assert result[key] == pytest.approx(sum(layer[key] for layer in result["layers"]))
    assert {"stem.0", "stages.0.0.conv", "stages.0.0.gate", "head"} <= {layer["name"] for layer in result["layers"]}
    assert [len(rates) for rates in result["firing_by_step"].values()] == [2] * 16
    # every binary weight is read once in each of two steps
    assert result["layers"][1]["weight_bytes"] == 2 * 4 * 4 * 9 / 8


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_totals_and_keeps_layers_for_json(model_folder, capsys, as_json):
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(model_folder), *(["--json"] if as_json else [])])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    if as_json:
        assert len(json.loads(out)["layers"]) == 1 + 16 + 16 + 3 + 1
    else:
        assert "energy_mj.paper_table2" in out
        assert "stages.0.0.conv" not in out


def test_two_ranks_measure_what_one_does(tiny_tree):
    """Two ranks that see the same: firing is that of one; a rank's loss weighs twice, so gradients are halved."""
    config = parse_config(tiny_tree, origin="test")
    torch.manual_seed(0)
    network = build_network(config.model)
    images = torch.randn(4, 3, 16, 16)

    def row(ranks):
        measures = Measures(network, config, lambda sums: [ranks * value for value in sums], ranks)
        with measures.step(ends_epoch=True):
            network.zero_grad()
            # a rank's loss is that of its slice; DDP averages over ranks
            network(images).square().mean().backward()
        with measures.validation():
            network(images)
        return measures.row({"total": 0.0})

    one, two = row(1), row(2)
    assert two["firing/total"] == pytest.approx(one["firing/total"])
    key = "stages.1.0.conv/t1"
    assert two[f"gradients/mean/{key}"] == pytest.approx(one[f"gradients/mean/{key}"] / 2)
    assert two[f"gradients/variance/{key}"] == pytest.approx(one[f"gradients/variance/{key}"] / 4)


def test_a_network_without_spikes_has_no_firing_to_draw(tiny_tree):
    model = {**tiny_tree["model"], "method": "vanilla", "time_steps": 1, "neuron": {"kind": "relu"}}
    config = parse_config({**tiny_tree, "model": model}, origin="test")
    network = build_network(config.model)
    measures = Measures(network, config, list, 1)
    with measures.step(ends_epoch=True), measures.validation():
        network(torch.randn(2, 3, 16, 16)).mean().backward()
    kinds = {key.split("/")[0] for key in measures.row({"total": 0.0})}
    assert kinds == {"flips", "flips_log", "flips_per_step", "weights", "gradients"}


def test_a_compiled_network_is_not_hooked(tiny_tree):
    """It would not see a hook that comes after its compilation."""
    config = parse_config({**tiny_tree, "run": {"compile": True}}, origin="test")
    network = build_network(config.model)
    measures = Measures(network, config, list, 1)
    with measures.step(ends_epoch=True), measures.validation(is_last=True):
        assert not any(layer._forward_hooks for layer in network.modules())
        network(torch.randn(2, 3, 16, 16)).mean().backward()
    kinds = {key.split("/")[0] for key in measures.row({"total": 0.0})}
    assert kinds == {"flips", "flips_log", "flips_per_step", "weights", "gradients"}
    assert set(measures.costs(2)) == {"size_mb"}


def test_figures_by_layer_and_step():
    """Two layers, two time steps, two epochs: means over time at the left, the last epoch at the right."""
    history = {
        f"firing/{layer}/t{t}": [(10, 0.1 * (t + 1)), (20, 0.2 * (t + 1))] for layer in ("a.conv", "b") for t in (0, 1)
    } | {"firing/total": [(10, 0.2), (20, 0.3)]}
    curves, picture, *_ = figures.firing(history).axes
    assert [line.get_label() for line in curves.lines] == ["a.conv", "b"]
    assert curves.lines[0].get_ydata() == pytest.approx([0.15, 0.3])
    assert picture.images[0].get_array().tolist() == [pytest.approx([0.2, 0.4])] * 2


@pytest.mark.parametrize("variance", [1e-6, 0.0])
def test_gradients_are_drawn_also_where_they_vanish(tmp_path, variance):
    history = {f"gradients/variance/a/t{t}": [(10, variance)] for t in (0, 1)}
    figures.gradients(history).savefig(tmp_path / "gradients.png")
    assert (tmp_path / "gradients.png").stat().st_size > 1000
    assert math.isfinite(figures.gradients(history).axes[0].get_ylim()[0])


def _measured(config, network, images, sums=list, *, is_last=True, of=None):
    """Costs per image of all the ranks' images, of which this one's are `images`."""
    measures = Measures(network, config, sums, 1)
    with measures.validation(is_last=is_last), torch.inference_mode():
        if len(images):
            network(images)
    return measures.costs(of or len(images))


@pytest.mark.parametrize(
    ("operations", "is_last", "counted"),
    [("none", True, False), ("last", False, False), ("last", True, True), ("epoch", False, True)],
)
def test_operations_are_counted_in_the_validations_asked_for(tiny_tree, operations, is_last, counted):
    config = parse_config({**tiny_tree, "run": {"operations": operations, "measure": "none"}}, origin="test")
    network = build_network(config.model).eval()
    row = _measured(config, network, torch.randn(2, 3, 16, 16), is_last=is_last)
    assert row["size_mb"] > 0
    assert ("sops" in row, "macs" in row, "energy_mj/paper_table2" in row) == (counted,) * 3
    assert not any(layer._forward_hooks for layer in network.modules())


def test_costs_are_means_over_the_images_of_all_ranks_one_of_which_has_none(tiny_tree):
    config = parse_config(tiny_tree, origin="test")
    torch.manual_seed(0)
    network = build_network(config.model).eval()
    images = torch.randn(5, 3, 16, 16)
    alone = _measured(config, network, images)
    gathered = []
    for share in (images[:2], images[2:], images[:0]):
        _measured(config, network, share, lambda own: gathered.append(own) or own, of=5)
    together = [sum(values) for values in zip(*gathered, strict=True)]
    assert _measured(config, network, images[:0], lambda _: together, of=5) == alone
