"""A figure of what several searches have found by the time they have spent so much, over repeats."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

# Of the Okabe-Ito palette, which every kind of sight tells apart; as in `report.search`.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")

Found_RX = NDArray[np.float64]  # repeats by epochs spent, from 1; NaN where a search has nothing yet


def anytime_comparison(panels: Mapping[str, Mapping[str, Found_RX]], ceiling_R: NDArray[np.float64]) -> Figure:
    """The mean over repeats of each search, with a band of one standard deviation and the repeats as thin lines.

    panels: by what is shown, e.g. the best that is trained in full, and then by search. A mean begins where all repeats
    have a value. ceiling_R: the best that there was to find in each repeat, whose mean is drawn dashed.
    """
    figure = Figure(figsize=(5.5 * len(panels), 4.8), layout="constrained")
    for axes, (title, searches) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for colour, (label, found_RX) in zip(_COLOURS, searches.items(), strict=False):
            _search(axes, found_RX, label, colour)
        axes.axhline(float(ceiling_R.mean()), color="black", linestyle="--", linewidth=1, label="best of all, in full")
        axes.set(xlabel="epochs spent, all trials together", ylabel=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=len(handles[0]), frameon=False)
    return figure


def _search(axes: Axes, found_RX: Found_RX, label: str, colour: str) -> None:
    spent_X = np.arange(1, found_RX.shape[1] + 1)
    mean_X, deviation_X = found_RX.mean(axis=0), found_RX.std(axis=0, ddof=1)
    for found_X in found_RX:
        axes.step(spent_X, found_X, where="post", color=colour, linewidth=0.6, alpha=0.5)
    axes.fill_between(spent_X, mean_X - deviation_X, mean_X + deviation_X, step="post", color=colour, alpha=0.15)
    axes.step(spent_X, mean_X, where="post", color=colour, linewidth=2, label=label)
