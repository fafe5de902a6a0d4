"""Figures of a search, from plain rows of its trials. Dark is good; pruned trials are thin, failed ones orange."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipelines.config.search import SpaceConfig
from pipelines.progress import Say
from pipelines.report.parallel import Outcome, parallel
from pipelines.report.trials import Directions, Importances, TrialRow, importances, study_of, with_values

_UNITS = {
    "top1": "top-1 accuracy",
    "sops": "SOPs of an image",
    "macs": "MACs of an image",
    "energy_mj": "energy of an image [mJ]",
    "size_mb": "size [MB]",
    "flips": "flips per epoch / weights",
}
# Of the Okabe-Ito palette, which every kind of sight tells apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#888888"
_STYLES: dict[str, dict[str, Any]] = {
    "finished": {"color": _BLUE, "linewidth": 1.2, "marker": "."},
    "pruned": {"color": _GREY, "linewidth": 0.7, "marker": ".", "markersize": 4},
    "failed": {"color": _ORANGE, "linewidth": 1.2, "linestyle": "--", "marker": "x", "markevery": [-1], "zorder": 3},
}
_BEST: dict[str, Any] = {"color": "black", "linewidth": 2.5, "marker": "."}


def search_figures(
    trials: Sequence[TrialRow],
    objectives: Directions,
    space: SpaceConfig,
    *,
    rungs: Sequence[int] = (),
    say: Say = lambda _: None,
) -> dict[str, Figure]:
    """Figures by name: learning_curves, anytime, parallel_coordinates, importances and, of several objectives, pareto.

    rungs: epochs after which trials were judged. A figure that these trials cannot fill is left out; `say` hears why.
    """
    figures = {}
    if any(_curve(trial, objectives)[0] for trial in trials):
        figures["learning_curves"] = learning_curves(trials, objectives, rungs)
        figures["anytime"] = anytime(trials, objectives)
    else:
        say(f"no learning curves: no trial has a value of {next(iter(objectives))}")
    if with_values(trials, objectives):
        figures["parallel_coordinates"] = parallel_coordinates(trials, objectives, space)
        if len(objectives) > 1:
            figures["pareto"] = pareto(trials, objectives, space)
    else:
        say("neither parallel coordinates nor a Pareto front: no trial finished with a value of every objective")
    found, why_not = importances(trials, objectives, space)
    if found:
        figures["importances"] = importance_bars(found, objectives)
    else:
        say(f"no importances of fields: {why_not}")
    return figures


def learning_curves(trials: Sequence[TrialRow], objectives: Directions, rungs: Sequence[int] = ()) -> Figure:
    """The first objective of each trial over its epochs, with the rungs; the best trial that finished in black."""
    figure, axes = _axes("epoch", _label(next(iter(objectives))))
    for rung in rungs:
        axes.axvline(rung, color=_GREY, linestyle=":", linewidth=1)
    best = _best(trials, objectives)
    for trial in trials:
        if (curve := _curve(trial, objectives))[0]:
            axes.plot(*curve, **_STYLES[trial.state])
    if best:
        axes.plot(*_curve(best, objectives), **_BEST)
    _legend(axes, trials, best, rungs)
    return figure


def anytime(trials: Sequence[TrialRow], objectives: Directions) -> Figure:
    """The best value of the first objective so far, against the epochs that all trials together have spent.

    Epochs are in the order of their `seconds`; trials without them follow one another.
    """
    name, way = next(iter(objectives.items()))
    figure, axes = _axes("epochs spent, all trials together", _label(name))
    epochs = sorted((e for t in trials for e in t.epochs), key=lambda epoch: epoch.get("seconds", math.inf))
    values = [epoch.get(name, math.nan) for epoch in epochs]
    spent = range(1, len(values) + 1)
    axes.plot(spent, values, ".", color=_GREY, markersize=4, label="an epoch of a trial")
    so_far, best = [], math.nan
    for value in values:
        best = value if math.isnan(best) or _is_better(value, best, way) else best
        so_far.append(best)
    axes.step(spent, so_far, where="post", color=_BLUE, linewidth=2, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _above(axes, axes.get_legend_handles_labels()[0])
    return figure


def parallel_coordinates(trials: Sequence[TrialRow], objectives: Directions, space: SpaceConfig) -> Figure:
    """What each trial drew, and how well those that finished did by the first objective."""
    name, way = next(iter(objectives.items()))
    values = {trial.number: trial.at(None)[name] for trial in with_values(trials, objectives)}
    return parallel(trials, space, Outcome(_label(name), values, more_is_better=way == "max"))


def importance_bars(found: Importances, objectives: Directions) -> Figure:
    """How much each field decides, as bars; fields that decide most are on top."""
    when = "at their end" if found.epoch is None else f"after epoch {found.epoch}"
    goal = _label(next(iter(objectives))) if len(objectives) == 1 else "the Pareto front"
    figure, axes = _axes("importance, as a share of 1", "")
    bars = axes.barh(list(found.shares)[::-1], list(found.shares.values())[::-1], color=_BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.margins(x=0.12)
    axes.set_title(f"What decides {goal}: {found.trials} trials {when}", fontsize="medium")
    return figure


def pareto(trials: Sequence[TrialRow], objectives: Directions, space: SpaceConfig) -> Figure:
    """The first objective against each other one, of the trials that finished; the front is numbered."""
    study, rows = study_of(trials, objectives, space)
    front = {trial.number for trial in study.best_trials}
    first, *others = objectives
    figure = Figure(figsize=(max(6.4, 4.5 * len(others)), 4.8), layout="constrained")
    for axes, other in zip(figure.subplots(1, len(others), squeeze=False, sharey=True)[0], others, strict=True):
        points = [(row.at(None)[other], row.at(None)[first], row.number, i in front) for i, row in enumerate(rows)]
        best = sorted(point for point in points if point[3])
        axes.plot(*_sides([point for point in points if not point[3]]), "o", color=_GREY, label="finished")
        axes.plot(*_sides(best), "o", color=_BLUE, label="Pareto front, by number of trial")
        if len(others) == 1:
            axes.plot(*_sides(best), color=_BLUE, linewidth=1)
        for x, y, number, _ in best:
            axes.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel=_label(other))
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel=_label(first))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    return figure, axes


def _label(objective: str) -> str:
    return _UNITS.get(objective, objective)


def _curve(trial: TrialRow, objectives: Directions) -> tuple[list[int], list[float]]:
    """Epochs, counted from 1, and the first objective after them, where it is finite."""
    name = next(iter(objectives))
    points = [(epoch, measured.get(name, math.nan)) for epoch, measured in enumerate(trial.epochs, 1)]
    points = [point for point in points if math.isfinite(point[1])]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _best(trials: Sequence[TrialRow], objectives: Directions) -> TrialRow | None:
    """The trial that ended best by the first objective, of those that finished."""
    name, way = next(iter(objectives.items()))
    rows = with_values(trials, {name: way})
    choose = max if way == "max" else min
    return choose(rows, key=lambda row: row.at(None)[name]) if rows else None


def _is_better(value: float, than: float, way: str) -> bool:
    return value > than if way == "max" else value < than


def _sides(points: Sequence[tuple[float, float, int, bool]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _legend(axes: Axes, trials: Sequence[TrialRow], best: TrialRow | None, rungs: Sequence[int]) -> None:
    """What is there, once, with how often."""
    counts = {state: sum(trial.state == state for trial in trials) for state in _STYLES}
    handles = [Line2D([], [], label=f"{count} {state}", **_STYLES[state]) for state, count in counts.items() if count]
    if best:
        handles.append(Line2D([], [], label=f"best: trial {best.number}", **_BEST))
    if rungs:
        handles.append(Line2D([], [], label="rung", color=_GREY, linestyle=":"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _above(axes, handles)


def _above(axes: Axes, handles: Sequence[Artist]) -> None:
    """A legend where no curve is."""
    axes.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(handles), frameon=False)
