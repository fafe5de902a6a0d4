"""Parallel coordinates of a search: a vertical line a field, over all that the space allows, and a curve a trial.

Optuna's version scales an axis by what the finished trials drew, so that the two that early stopping leaves look as if
they lay at opposite ends; and it goes through pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pipelines.config.search import Drawn, SpaceConfig
from pipelines.report.trials import TrialRow

_MISSING = -0.12  # height of what a trial did not draw
_GREY = "#888888"


class Outcome(NamedTuple):
    """What trials are coloured by: a label, the values by number of trial, and whether more is better."""

    label: str
    values: dict[int, float]
    more_is_better: bool


def parallel(trials: Sequence[TrialRow], space: SpaceConfig, outcome: Outcome) -> Figure:
    """Trials with an outcome in its colour, the best ones last and dark; others thin, and without the last axis."""
    names = list(space.drawn)
    figure = Figure(figsize=(1.5 + 1.5 * len(names), 5), layout="constrained")
    axes = figure.subplots()
    for trial in trials:
        if trial.number not in outcome.values:
            axes.plot(_heights(trial, space), color=_GREY, linewidth=0.5, alpha=0.7)
    low, high = _range(outcome)
    scale = Normalize(low, high)
    shades = colormaps["viridis_r" if outcome.more_is_better else "viridis"]
    worst_first = sorted(outcome.values.items(), key=lambda item: item[1], reverse=not outcome.more_is_better)
    rows = {trial.number: trial for trial in trials}
    for number, value in worst_first:
        heights = [*_heights(rows[number], space), float(scale(value))]
        axes.plot(heights, color=shades(scale(value)), linewidth=1.8)
    for place, (name, drawn) in enumerate(space.drawn.items()):
        _axis(axes, place, _ticks(drawn))
        if any(name not in trial.values for trial in trials):
            _mark(axes, place, _MISSING, "none")
    _axis(axes, len(names), {f"{value:.3g}": float(scale(value)) for value in np.linspace(low, high, 5)})
    axes.set_xticks(range(len(names) + 1), [*names, outcome.label])
    axes.set_title(f"Trials that finished by {outcome.label}, dark is good; in grey the others", fontsize="medium")
    axes.set(yticks=[], xlim=(-0.1, len(names) + 0.45), ylim=(_MISSING - 0.05, 1.05))
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False)
    return figure


def _heights(trial: TrialRow, space: SpaceConfig) -> list[float]:
    return [
        _height(drawn, trial.values[name]) if name in trial.values else _MISSING for name, drawn in space.drawn.items()
    ]


def _height(drawn: Drawn, value: float | int | str | bool) -> float:
    """Where a value lies on its axis, 0 to 1."""
    if drawn.choice is not None:
        return drawn.choice.index(value) / max(1, len(drawn.choice) - 1)
    low, high = drawn.uniform or drawn.loguniform or (0.0, 1.0)
    value = float(value)
    return math.log(value / low) / math.log(high / low) if drawn.loguniform else (value - low) / (high - low)


def _ticks(drawn: Drawn) -> dict[str, float]:
    """What is written beside an axis, and at which heights."""
    if drawn.choice is not None:
        return {str(value): _height(drawn, value) for value in drawn.choice}
    spaced = np.geomspace if drawn.loguniform else np.linspace
    values = spaced(*(drawn.uniform or drawn.loguniform or (0.0, 1.0)), 5).tolist()
    return {f"{value:.3g}": _height(drawn, value) for value in values}


def _range(outcome: Outcome) -> tuple[float, float]:
    low, high = min(outcome.values.values()), max(outcome.values.values())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _axis(axes: Axes, place: int, ticks: dict[str, float]) -> None:
    axes.plot([place, place], [0, 1], color="black", linewidth=0.8)
    for text, height in ticks.items():
        _mark(axes, place, height, text)


def _mark(axes: Axes, place: int, height: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axes.text(place + 0.04, height, text, fontsize=8, va="center", bbox=box)
