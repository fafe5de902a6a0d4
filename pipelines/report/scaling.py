"""A figure of how long a step is simulated to take among many workers, and how much of it is work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

# Of the Okabe-Ito palette, as in `report.comparison`.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "s", "^", "D")


def scaling(
    workers: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[float]]], alone: float, inputs: Sequence[str]
) -> Figure:
    """Seconds of a step above, the share of one worker's alone in it below; both against workers, a column a panel.

    panels: seconds by title, then by what is sent, one for each number of workers. `inputs` are lines below.
    """
    figure = Figure(figsize=(4.2 * len(panels), 7.6), layout="constrained")
    grid = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
    for column, (title, lines) in enumerate(panels.items()):
        for colour, marker, (label, seconds) in zip(_COLOURS, _MARKERS, lines.items(), strict=False):
            style = {"color": colour, "marker": marker, "markersize": 4, "label": label}
            grid[0, column].plot(workers, seconds, **style)
            grid[1, column].plot(workers, [alone / each for each in seconds], **style)
        grid[0, column].set(title=title, yscale="log")
        grid[1, column].set(ylim=(0, 1.05), xlabel="workers")
        _ticks(grid[:, column], workers)
    grid[0, 0].set(ylabel="seconds a step (simulated)")
    grid[1, 0].set(ylabel="efficiency (simulated)")
    grid[0, 0].legend(loc="upper left")
    grid[0, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    grid[0, 0].yaxis.set_minor_formatter("")
    figure.suptitle("Simulated: a data-parallel training step, the batch of each worker fixed", fontweight="bold")
    figure.supxlabel("\n".join(inputs), fontsize=7.5, ha="left", x=0.01)
    return figure


def _ticks(column: Iterable[Axes], workers: Sequence[int]) -> None:
    for axes in column:
        axes.set_xscale("log", base=2)
        axes.set_xticks(workers[::2], [str(each) for each in workers[::2]])
        axes.grid(alpha=0.3)
