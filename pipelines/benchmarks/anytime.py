"""What comes out of searches at equal budget: the best by epochs spent, pairs over repeats, ranks at the rungs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, median, stdev
from typing import Any, Literal

import numpy as np

from pipelines.benchmarks import row
from pipelines.benchmarks.curves import Curve, Start
from pipelines.benchmarks.replay import Replay
from pipelines.config import RunConfig
from pipelines.search.objectives import rank_correlation
from pipelines.search.schedulers import rungs

# The schedulers that are compared, by name: the first is ours, the second the peer.
SEARCHES: dict[str, Literal["asha", "none"]] = {"ASHA": "asha", "random": "none"}


@dataclass(frozen=True)
class Found:
    """What a search has found after so many epochs, from 1: NaN before there is something.

    `final`: the best top-1 of a trial trained in full, at its end; `seen`: the best of any epoch of any trial.
    """

    final: list[float]
    seen: list[float]
    begun: int
    finished: int
    spent: int
    is_exhausted: bool


@dataclass(frozen=True)
class Repeat:
    """One repeat: the best of all configurations trained in full, and the searches by name."""

    seed: int
    best: float
    searches: dict[str, Found]

    def regret(self, name: str) -> float:
        """How far a search's end is from the best that there was."""
        return self.best - self.searches[name].final[-1]


def found_by(search: Replay, *, epochs: int, budget: int) -> Found:
    """The anytime curves of a search with trials of `epochs`, held to the end where it spent less than `budget`."""
    final, seen = [math.nan], [math.nan]
    for each in search.reports:
        final.append(np.fmax(final[-1], each.top1 if each.epoch == epochs else math.nan).item())
        seen.append(np.fmax(seen[-1], each.top1).item())
    rest = budget - len(search.reports)
    finished = sum(each.epoch == epochs for each in search.reports)
    return Found(
        final[1:] + final[-1:] * rest,
        seen[1:] + seen[-1:] * rest,
        begun=search.begun,
        finished=finished,
        spent=len(search.reports),
        is_exhausted=search.is_exhausted,
    )


def rows_of_searches(repeats: list[Repeat]) -> list[dict[str, Any]]:
    """Ours is ASHA, the peer random search; accuracies in %. At least two repeats."""
    n = len(repeats)
    ends = _pairs(repeats, lambda each, name: 100 * each.searches[name].final[-1])
    regrets = _pairs(repeats, lambda each, name: 100 * each.regret(name))
    differences = [ours - peer for ours, peer in ends]
    return [
        _both("top-1 of the best at the end, mean", ends, mean, "%"),
        _both("its sd over repeats", ends, stdev, "%"),
        _both("regret against the best of all, mean", regrets, mean, "points"),
        _both("its sd over repeats", regrets, stdev, "points"),
        row("difference of the ends, mean of pairs", mean(differences), "points"),
        row("its standard error", stdev(differences) / math.sqrt(n), "points"),
        row("repeats won", sum(d > 0 for d in differences), f"of {n}", sum(d < 0 for d in differences)),
        _both(
            "best seen so far, mean over the budget",
            _pairs(repeats, lambda each, name: 100 * mean(each.searches[name].seen)),
            mean,
            "%",
        ),
        _both("configurations begun, mean", _pairs(repeats, lambda each, name: each.searches[name].begun), mean, ""),
        _both("trained in full, mean", _pairs(repeats, lambda each, name: each.searches[name].finished), mean, ""),
        _both("epochs spent, mean", _pairs(repeats, lambda each, name: each.searches[name].spent), mean, ""),
    ]


def rows_of_ranks(config: RunConfig, curves: Mapping[int, Mapping[int, Curve]]) -> list[dict[str, Any]]:
    """How ranks at the rungs agree, by repeat over all configurations that reached both: none was ended early."""
    assert config.tune is not None
    rows = []
    for rung, later in combinations(rungs(config.tune, config.optim.epochs), 2):
        found = [
            rank_correlation((_at(curve, rung), _at(curve, later)) for curve in each.values())
            for each in curves.values()
        ]
        unit = f"n={min(n for n, _, _ in found)}"
        for name, values in (("Spearman", [rho for _, rho, _ in found]), ("Kendall", [tau for _, _, tau in found])):
            told = [value for value in values if value is not None]
            if len(told) > 1:
                rows.append(row(f"{name}, epoch {rung} to {later}, mean", mean(told), unit))
                rows.append(row("its sd over repeats", stdev(told), unit))
    return rows


def rows_of_costs(repeats: list[Repeat], starts: list[Start]) -> list[dict[str, Any]]:
    """What the replay hides. A start is without Ray's own part."""
    start, epoch = median(each.seconds for each in starts), median(each.epoch for each in starts)
    begun = _pairs(repeats, lambda each, name: each.searches[name].begun * start / epoch)
    return [
        row("start of a trial's process, median", start, "s"),
        row("epoch beside it, median", epoch, "s"),
        _both("all starts, as so many epochs, mean", begun, mean, "epochs"),
    ]


def _pairs(repeats: list[Repeat], pick: Callable[[Repeat, str], float]) -> list[tuple[float, float]]:
    """A value of each search, by repeat."""
    ours, peer = SEARCHES
    return [(pick(each, ours), pick(each, peer)) for each in repeats]


def _both(
    name: str, pairs: list[tuple[float, float]], summary: Callable[[Iterable[float]], float], unit: str
) -> dict[str, Any]:
    ours, peer = zip(*pairs, strict=True)
    return row(name, float(summary(ours)), unit, float(summary(peer)))


def _at(curve: Curve, epoch: int) -> float | None:
    return curve.top1[epoch - 1] if len(curve.top1) >= epoch else None
