"""Figures of a search, from trials whose answer is known."""

import io
import math
import random

import pytest

from pipelines.config.search import SpaceConfig
from pipelines.report.parallel import Outcome, parallel
from pipelines.report.search import anytime, learning_curves, pareto, search_figures
from pipelines.report.trials import TrialRow, importances, study_of

NAN = math.nan
TOP1 = {"top1": "max"}
SPACE = SpaceConfig.model_validate(
    {
        "leak": {"uniform": [0, 1]},
        "threshold": {"uniform": [0.5, 1.5], "step": 0.25},
        "surrogate_width": {"loguniform": [0.5, 2]},
        "method": {"choice": ["agmm", "vanilla"]},
        "gate_scope": {"choice": ["sample", "channel"]},
    }
)


def row(number, top1, state="finished", **values):
    return TrialRow(number, values, state, [{"top1": value} for value in top1])


def drawn(count, length=3):
    """Random trials: leak decides, pruned trials have one epoch, one is NaN, and the gate belongs to one method."""
    rng, trials = random.Random(0), []
    for number in range(count):
        values = {
            "leak": rng.random(),
            "threshold": rng.choice([0.5, 0.8, 1.1, 1.4]),
            "surrogate_width": 2 ** rng.uniform(-1, 1),
            "method": rng.choice(["agmm", "vanilla"]),
        }
        values |= {"gate_scope": rng.choice(["sample", "channel"])} if values["method"] == "agmm" else {}
        top1 = 0.8 - values["leak"] ** 2 / 2
        epochs = [{"top1": top1 * (1 - 0.5**e), "sops": 1e8 * values["threshold"]} for e in range(1, length + 1)]
        trials.append(TrialRow(number, values, "finished", epochs))
    return trials


def pruned(trials, keep):
    return [
        each if each.number < keep else TrialRow(each.number, each.values, "pruned", each.epochs[:1]) for each in trials
    ]


@pytest.mark.parametrize("objectives", [TOP1, {"top1": "max", "sops": "min"}])
def test_a_search_has_all_its_figures(objectives):
    failed = TrialRow(99, {"leak": 0.5}, "failed", [{"top1": 0.1, "sops": 1e8}, {"top1": NAN}])
    said = []
    figures = search_figures([*drawn(16), failed], objectives, SPACE, rungs=(1,), say=said.append)
    several = {"pareto"} if len(objectives) > 1 else set()
    assert figures.keys() == {"learning_curves", "anytime", "parallel_coordinates", "importances"} | several
    assert not said
    for figure in figures.values():
        figure.savefig(out := io.BytesIO())
        assert out.tell() > 5000
        assert all(axes.get_xlabel() or axes.get_title() for axes in figure.axes)


@pytest.mark.parametrize(
    ("trials", "figures", "words"),
    [
        ([], set(), ["no learning curves", "no trial finished", "0 trials can be compared, and 12 are needed"]),
        ([row(0, [NAN], "failed", leak=0.5)], set(), ["no learning curves", "no trial finished", "no importances"]),
        ([row(0, [], "failed", leak=0.5)], set(), ["no learning curves", "no trial finished", "no importances"]),
        ([row(0, [0.1], "pruned", leak=0.5)], {"learning_curves", "anytime"}, ["no trial finished", "1 trials can be"]),
        (
            [row(0, [0.1], leak=0.5)],
            {"learning_curves", "anytime", "parallel_coordinates"},
            ["1 trials can be compared, and 12 are needed"],
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(trials, figures, words):
    said = []
    found = search_figures(trials, TOP1, SPACE, say=said.append)
    assert found.keys() == figures
    assert len(said) == len(words)
    for line, part in zip(said, words, strict=True):
        assert part in line
    for figure in found.values():
        figure.savefig(io.BytesIO())


def test_learning_curves_show_every_trial_and_the_best_on_top():
    trials = [row(3, [0.1, 0.5]), row(4, [0.3], "pruned"), row(5, [0.2, NAN], "failed"), row(6, [0.2, 0.4])]
    axes = learning_curves(trials, TOP1, rungs=(1,)).axes[0]
    rung, *curves = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert rung[0] == [1, 1]
    assert curves == [([1, 2], [0.1, 0.5]), ([1], [0.3]), ([1], [0.2]), ([1, 2], [0.2, 0.4]), ([1, 2], [0.1, 0.5])]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["2 finished", "1 pruned", "1 failed", "best: trial 3", "rung"]
    widths = [line.get_linewidth() for line in axes.lines[1:]]
    assert widths[1] < widths[0] < widths[-1]


@pytest.mark.parametrize(("way", "expected"), [("max", [NAN, 0.2, 0.2, 0.6, 0.6]), ("min", [NAN, 0.2, 0.1, 0.1, 0.1])])
def test_the_best_so_far_by_hand(way, expected):
    """Two trials side by side: epochs count in the order in which they ended, and one that is NaN was spent, too."""
    one = TrialRow(0, {}, "finished", [{"top1": 0.2, "seconds": 2}, {"top1": 0.6, "seconds": 4}])
    two = TrialRow(1, {}, "failed", [{"top1": NAN, "seconds": 1}, {"top1": 0.1, "seconds": 3}, {"seconds": 5}])
    axes = anytime([one, two], {"top1": way}).axes[0]
    assert list(axes.lines[1].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(axes.lines[1].get_ydata()) == pytest.approx(expected, nan_ok=True)


def test_the_front_by_hand():
    measured = [(0.9, 9.0), (0.8, 5.0), (0.7, 6.0), (0.6, 1.0)]
    trials = [
        TrialRow(i + 10, {"leak": 0.5}, "finished", [{"top1": a, "sops": s}]) for i, (a, s) in enumerate(measured)
    ]
    trials += [row(20, [0.99], leak=0.1), TrialRow(21, {"leak": 0.2}, "pruned", [{"top1": 0.99, "sops": 0.1}])]
    axes = pareto(trials, {"top1": "max", "sops": "min"}, SPACE).axes[0]
    assert [text.get_text() for text in axes.texts] == ["13", "11", "10"]
    assert (list(axes.lines[0].get_xdata()), list(axes.lines[0].get_ydata())) == ([6.0], [0.7])


def test_parallel_coordinates_by_hand():
    """Heights are shares of what the space allows, of the logarithm where the space has it."""
    values = {"leak": 0.25, "threshold": 0.5, "surrogate_width": 1.0, "method": "vanilla"}
    one, two = row(0, [0.4], **values), row(1, [0.8], **values | {"gate_scope": "channel"})
    outcome = Outcome("top-1", {0: 0.4, 1: 0.8}, more_is_better=True)
    other = row(2, [0.3], "pruned", **values)
    grey, worst, best = [
        list(line.get_ydata()) for line in parallel([two, one, other], SPACE, outcome).axes[0].lines[:3]
    ]
    assert grey == [0.25, 0, 0.5, 1, pytest.approx(-0.12)]
    assert worst == [*grey, 0]
    assert best == [0.25, 0, 0.5, 1, 1, 1]


def test_the_field_that_decides_comes_first():
    found, why_not = importances(drawn(16), TOP1, SPACE)
    assert not why_not
    assert next(iter(found.shares)) == "leak"
    assert sum(found.shares.values()) == pytest.approx(1)
    assert (found.trials, found.epoch) == (16, None)


def test_where_few_trials_finished_all_are_compared_at_one_epoch():
    trials = pruned(drawn(16), keep=2)
    found, _ = importances(trials, TOP1, SPACE)
    assert (found.trials, found.epoch, next(iter(found.shares))) == (16, 1, "leak")
    figure = search_figures(trials, TOP1, SPACE)["importances"]
    assert figure.axes[0].get_title() == "What decides top-1 accuracy: 16 trials after epoch 1"


def test_importances_that_mean_nothing_are_not_given():
    alike = [TrialRow(each.number, each.values, "finished", [{"top1": 0.1}]) for each in drawn(16)]
    one_field = SpaceConfig.model_validate({"threshold": None, "surrogate_width": None})
    assert importances(alike, TOP1, SPACE) == (None, "the better ones of 16 trials drew what all did")
    assert importances(drawn(16), TOP1, one_field) == (None, "the space draws one field only")


def test_the_study_is_the_trials():
    trials = [*drawn(3), row(7, [0.5], "pruned", leak=0.5)]
    study, rows = study_of(trials, TOP1, SPACE)
    assert (
        [trial.params for trial in study.trials] == [trial.values for trial in rows] == [t.values for t in trials[:3]]
    )
    assert study.best_value == max(trial.epochs[-1]["top1"] for trial in rows)


def test_a_rounding_error_beyond_the_edge_is_none():
    study, _ = study_of([row(0, [0.5], leak=1.0000000000000002, surrogate_width=0.49999999999999994)], TOP1, SPACE)
    assert study.trials[0].params == {"leak": 1.0, "surrogate_width": 0.5}
