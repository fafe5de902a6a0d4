"""Figures of a run, from its metric history. Rows are (step, value)."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

Rows = list[tuple[int, float]]


def curves(history: Mapping[str, Rows]) -> Figure:
    """Loss and top-1 accuracy, training and validation, over optimiser steps."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, kind, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 accuracy"), strict=True):
        for split, marker in (("train", ""), ("val", "o")):
            rows = history[f"{split}/{kind}"]
            axes.plot([step for step, _ in rows], [value for _, value in rows], marker=marker, label=split)
        axes.set(xlabel="optimiser step", ylabel=label)
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


def _line(axes, rows: Rows, label: str, **style) -> None:  # type: ignore[no-untyped-def]
    axes.plot([step for step, _ in rows], [value for _, value in rows], marker=".", label=label, **style)
