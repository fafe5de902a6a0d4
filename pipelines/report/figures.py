"""Figures of a run, from its metric history, and of a loss landscape. Rows are (step, value)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.loop.window import PHASES

Rows = list[tuple[int, float]]


def curves(history: Mapping[str, Rows]) -> Figure:
    """Loss and top-1 accuracy, training and validation, over optimiser steps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, kind, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 accuracy"), strict=True):
        for split, marker in (("train", ""), ("val", "o")):
            rows = history[f"{split}/{kind}"]
            axes.plot([step for step, _ in rows], [value for _, value in rows], marker=marker, label=split)
        axes.set(xlabel="optimiser step", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def flips(history: Mapping[str, Rows]) -> Figure:
    """Flip ratio of every layer over optimiser steps (Eq. 8), first layers dark; the total in black."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    layers = [key for key in history if key != "flips/total"]
    for index, key in enumerate(layers):
        shade = 0.15 + 0.75 * index / max(1, len(layers) - 1)
        _line(axes, history[key], key.removeprefix("flips/"), color=(0.1, shade, 1 - shade / 2), linewidth=1)
    _line(axes, history["flips/total"], "all layers", color="black", linewidth=2)
    axes.set(xlabel="optimiser step", ylabel="flips per epoch / weights")
    lowest = min((value for rows in history.values() for _, value in rows), default=0)
    axes.set_yscale("log" if lowest > 0 else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def phases(history: Mapping[str, Rows]) -> Figure:
    """Seconds of a step by phase, stacked in their order, over optimiser steps; and their shares in the mean."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    areas, shares = figure.subplots(1, 2, width_ratios=[3, 1])
    steps = [step for step, _ in history[f"time/{PHASES[0]}"]]
    seconds = {name: [value for _, value in history[f"time/{name}"]] for name in PHASES}
    means = {name: sum(values) / len(values) for name, values in seconds.items()}
    whole = sum(means.values()) or 1.0
    colours = [colormaps["tab10"](index) for index in range(len(PHASES))]
    areas.stackplot(steps, list(seconds.values()), labels=list(seconds), colors=colours, step="pre")
    areas.set(xlabel="optimiser step", ylabel="seconds a step", ylim=(0, None))
    bars = shares.barh(list(means), [mean / whole for mean in means.values()], color=colours)
    shares.bar_label(bars, [f"{mean / whole:.1%}" for mean in means.values()], fontsize=7, padding=2)
    shares.set(xlabel="share of the time", xlim=(0, 1))
    shares.invert_yaxis()
    return figure


def firing(history: Mapping[str, Rows]) -> Figure:
    """Share of neurons that fire, per layer: over optimiser steps, and by time step at the end."""
    return _layers_and_steps(history, "firing/", "spikes per neuron and time step", logarithmic=False)


def gradients(history: Mapping[str, Rows]) -> Figure:
    """Variance of the gradient that reaches each layer (Proposition 1): over optimiser steps, and by time step."""
    return _layers_and_steps(history, "gradients/variance/", "gradient variance", logarithmic=True)


def _layers_and_steps(history: Mapping[str, Rows], prefix: str, label: str, *, logarithmic: bool) -> Figure:
    """Left: each layer's mean over its time steps, first layers dark. Right: layer by time step, the last row of each.

    Keys are `<prefix><layer>/t<step>`; others are left out.
    """
    layers = _by_layer(history, prefix)
    above_zero = min((value for rows in history.values() for _, value in rows), default=0) > 0
    scale = "log" if logarithmic and above_zero else "linear"
    figure = Figure(figsize=(12, 5), layout="constrained")
    curves, picture = figure.subplots(1, 2)
    for index, (name, rows_of_steps) in enumerate(layers.items()):
        shade = 0.15 + 0.75 * index / max(1, len(layers) - 1)
        _line(curves, _mean_rows(rows_of_steps), name, color=(0.1, shade, 1 - shade / 2), linewidth=1)
    curves.set(xlabel="optimiser step", ylabel=label, yscale=scale)
    curves.grid(alpha=0.3)
    last = [[rows[-1][1] for rows in rows_of_steps] for rows_of_steps in layers.values()]
    image = picture.imshow(last, aspect="auto", norm=scale)
    picture.set(xlabel="time step", xticks=range(len(last[0])), yticks=range(len(layers)), yticklabels=list(layers))
    picture.tick_params(axis="y", labelsize=7)
    figure.colorbar(image, ax=picture, label=f"{label}, at the end")
    return figure


def _by_layer(history: Mapping[str, Rows], prefix: str) -> dict[str, list[Rows]]:
    """The rows of every time step, in order, by layer."""
    layers: dict[str, dict[int, Rows]] = {}
    for key, rows in history.items():
        name, _, step = key.removeprefix(prefix).rpartition("/t")
        if key.startswith(prefix) and step.isdigit():
            layers.setdefault(name, {})[int(step)] = rows
    return {name: [steps[step] for step in sorted(steps)] for name, steps in layers.items()}


def _mean_rows(rows_of_steps: list[Rows]) -> Rows:
    """The mean over time steps at each optimiser step."""
    return [(rows[0][0], sum(value for _, value in rows) / len(rows)) for rows in zip(*rows_of_steps, strict=True)]


def landscape(axis: NDArray[np.float64], loss: NDArray[np.float64], images: int) -> Figure:
    """Loss `[P, P]` over two directions as a contour and as a surface; the network is the cross in the middle.

    Points whose loss is not finite are left white; the title counts them.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    rows, columns = np.meshgrid(axis, axis, indexing="ij")
    finite = np.isfinite(loss)
    loss = np.where(finite, loss, np.nan)
    left_out = f"; {np.count_nonzero(~finite)} points without a finite loss" if not finite.all() else ""
    figure.suptitle(
        f"Loss of {images} images, +-{axis[-1]:g} norms of the weights, {len(axis)} x {len(axis)}{left_out}"
    )
    flat = figure.add_subplot(1, 2, 1)
    figure.colorbar(flat.contourf(columns, rows, loss, levels=20), ax=flat, label="loss")
    flat.plot(0, 0, "+", color="white", markersize=12)
    flat.set(xlabel="second direction", ylabel="first direction", aspect="equal")
    solid = figure.add_subplot(1, 2, 2, projection="3d")
    solid.plot_surface(columns, rows, loss, cmap="viridis")
    solid.tick_params(labelsize=7, pad=0)
    solid.set(xlabel="second direction", ylabel="first direction", zlabel="loss")
    solid.set_box_aspect(None, zoom=0.85)  # room for the label of the loss
    return figure


def _line(axes, rows: Rows, label: str, **style) -> None:  # type: ignore[no-untyped-def]
    axes.plot([step for step, _ in rows], [value for _, value in rows], marker=".", label=label, **style)


# what draws a figure, from the metrics with which prefix
BY_PREFIX = {
    "phases": (phases, "time/"),
    "flips": (flips, "flips/"),
    "firing": (firing, "firing/"),
    "gradients": (gradients, "gradients/variance/"),
}
