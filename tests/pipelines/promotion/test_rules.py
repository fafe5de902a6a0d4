import math

import pytest

from pipelines.config.gate import GateConfig
from pipelines.errors import UserError
from pipelines.promotion.gate import load_gate
from pipelines.promotion.rules import figures, judge, standard_error

FIGURES = {"top1": 0.9, "sops": 1000.0, "size_mb": 2.0, "energy_mj.paper_table2": 0.5, "firing": 0.1}


def _failed(gate, candidate, current):
    return [check.reason for check in judge(GateConfig.model_validate(gate), candidate, current) if not check.passed]


@pytest.mark.parametrize(
    ("rule", "value", "passes"),
    [
        ({"top1": {"worse_by": 0.002}}, 0.898, True),  # although 0.9 - 0.898 is more than 0.002 in binary
        ({"top1": {"worse_by": 0.002}}, 0.8979, False),
        ({"top1": {"worse_by": 0}}, 0.9, True),
        ({"top1": {"ratio": 0.99}}, 0.891, True),
        ({"top1": {"ratio": 0.99}}, 0.89, False),
        ({"top1": {"at_least": 0.85}}, 0.85, True),
        ({"top1": {"at_least": 0.85}}, 0.8499, False),
        ({"sops": {"ratio": 1.1}}, 1100, True),
        ({"sops": {"ratio": 1.1}}, 1101, False),
        ({"sops": {"worse_by": 10}}, 1010, True),
        ({"sops": {"worse_by": 10}}, 1011, False),
        ({"size_mb": {"at_most": 2}}, 2.0, True),
        ({"size_mb": {"at_most": 2}}, 2.1, False),
        ({"energy_mj": {"convention": "paper_table2", "ratio": 1.0}}, 0.5, True),
        ({"energy_mj": {"convention": "paper_table2", "ratio": 1.0}}, 0.51, False),
        ({"firing": {"at_least": 0.01}}, 0.009, False),
        ({"firing": {"worse_by": 0.01}}, 0.12, False),  # fewer spikes are better
    ],
)
def test_a_bound_goes_in_the_direction_of_its_metric(rule, value, passes):
    gate = {"top1": None} | rule
    metric = next(name for name in rule)
    key = "energy_mj.paper_table2" if metric == "energy_mj" else metric
    assert (_failed(gate, FIGURES | {key: value}, FIGURES) == []) is passes


def test_a_missing_figure_never_passes():
    assert _failed({"top5": {"at_least": 0.1}}, FIGURES, FIGURES) == [
        "top5 of the candidate is missing; the gate asks for it"
    ]
    assert (
        "energy_mj.horowitz_45nm of the candidate is missing"
        in _failed({"energy_mj": {"at_most": 1}}, FIGURES, FIGURES)[0]
    )
    assert "is nan" in _failed({}, FIGURES | {"top1": math.nan}, FIGURES)[0]
    [reason] = _failed({"loss": {"ratio": 1.0}}, FIGURES | {"loss": 1.0}, FIGURES)
    assert reason == "loss of the current version is missing; `ratio` compares with it"


def test_without_a_current_version_only_absolute_bounds_apply():
    gate = GateConfig.model_validate({"top1": {"worse_by": 0.002, "at_least": 0.95}})
    assert [check.passed for check in judge(gate, FIGURES, None)] == [None, False]


def test_figures_are_those_of_the_evaluation_and_the_flips_of_the_training():
    evaluation = {"top1": 0.5, "count": 10, "energy_mj": {"paper_table2": 2.0}, "firing": None}
    assert figures(evaluation, {"flips": 0.25, "top1": 1.0}) == {
        "top1": 0.5,
        "energy_mj.paper_table2": 2.0,
        "flips": 0.25,
    }


def test_the_standard_error_is_binomial():
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(1.0, 100) == 0


def test_a_gate_file_is_put_over_the_defaults(tmp_path):
    path = tmp_path / "gate.yaml"
    path.write_text("size_mb: {at_most: 5}\n")
    assert load_gate(str(path)).rules.keys() == {"top1", "size_mb"}
    assert load_gate(None).top1.bounds == {"worse_by": 0.002}
    path.write_text("top1: null\n")
    assert load_gate(str(path)).rules == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("top_1: {at_least: 0.8}", r"top_1: unknown key\. Known here: top1, top5"),
        ("top1: {atleast: 0.8}", r"top1\.atleast: unknown key\. Known here: worse_by, ratio, at_least"),
        ("top1: {at_least: 85}", r"top1\.at_least: .*less than or equal to 1.*85"),
        ("top1: {worse_by: -0.1}", r"top1\.worse_by: .*greater than or equal to 0"),
        ("top1: {}", "asks for nothing"),
        ("top1: 0.9", r"top1: .*Got 0\.9"),
        ("size_mb: {at_least: 3, at_most: 2}", "nothing is at least"),
        ("energy_mj: {at_most: 1, convention: guess}", "convention: .*horowitz_45nm"),
        ("top1: {at_least: 0.8}\ntop1: {at_least: 0.1}", "'top1' is there twice"),
        ("top1: [", "is not YAML"),
        ("- top1", "must be a mapping of top1, top5"),
        ("", "must be a mapping"),
    ],
)
def test_a_mistake_in_a_gate_file_is_explained(tmp_path, text, words):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as raised:
        load_gate(str(path))
    assert str(path) in str(raised.value)


def test_a_gate_file_that_is_not_there_is_explained():
    with pytest.raises(UserError, match="no-such"):
        load_gate("no-such.yaml")


def test_conventions_of_a_gate_are_those_that_are_computed():
    from typing import get_args

    from agmm.metrics.energy import CONVENTIONS
    from pipelines.config.gate import EnergyConvention

    assert set(get_args(EnergyConvention)) == set(CONVENTIONS)
