"""A search over recorded curves: `agmm tune`'s own searcher, ledger, budget and scheduler, with training left out.

What Ray Tune's event loop does is done here in its order: each of the workers reports one epoch after the other, all
epochs take equally long, and a worker whose trial has ended takes the next one at once. So starts cost nothing, and
nobody is faster than another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from pipelines.benchmarks.curves import Curve
from pipelines.config import RunConfig, TuneConfig
from pipelines.search.budget import Budget
from pipelines.search.ledger import Ledger
from pipelines.search.schedulers import build_scheduler
from pipelines.search.searchers import Numbered, build_draw
from pipelines.storage import open_store


@dataclass(frozen=True)
class Reported:
    """An epoch that was spent, in the order of spending."""

    number: int
    epoch: int
    top1: float


@dataclass(frozen=True)
class Replay:
    """A search that is over. `is_exhausted`: it had no configuration left, and budget to spend."""

    reports: list[Reported]
    begun: int
    is_exhausted: bool


@dataclass(frozen=True)
class _Trial:
    """What searcher and scheduler look at of Ray's trial."""

    trial_id: str
    config: Mapping[str, Any] = field(compare=False)

    @property
    def number(self) -> int:
        return int(self.config["number"])


def replay(config: RunConfig, curves: Mapping[int, Curve]) -> Replay:
    """Search as `config.tune` says, where trial n reports `curves[n]`, until the budget or the curves are used up.

    A trial whose curve is shorter than the training has failed after it; as in `agmm tune`, the epoch in which it fails
    is not counted.
    """
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch:
        search = _Search(config, Ledger.create(open_store(scratch), config), curves)
        search.run()
        return Replay(search.reports, len(search.ledger.trials), not search.budget.is_used_up)


class _Search:
    """The parts of a search, and the trials that run."""

    def __init__(self, config: RunConfig, ledger: Ledger, curves: Mapping[int, Curve]) -> None:
        tune = config.tune or TuneConfig()
        self.ledger, self.budget = ledger, Budget(tune, ledger)
        self.reports: list[Reported] = []
        self._curves, self._epochs, self._workers = curves, config.optim.epochs, tune.concurrent or 1
        self._searcher = Numbered(ledger, build_draw(config, ledger), self.budget, min(tune.trials, len(curves)))
        self._scheduler = build_scheduler(tune, self._epochs, ledger)
        self._running: list[_Trial] = []

    def run(self) -> None:
        """Report epochs until nobody runs or the budget is used up."""
        while self._fill():
            for trial in list(self._running):
                self._next_epoch(trial)
                if self.budget.is_used_up:
                    return

    def _fill(self) -> bool:
        """Give each free worker a trial; whether anybody runs."""
        while len(self._running) < self._workers:
            name = f"replayed-{self.ledger.next_number}"
            suggestion = self._searcher.suggest(name)
            if suggestion == Searcher.FINISHED:
                break
            assert isinstance(suggestion, dict)
            trial = _Trial(name, suggestion)
            self.ledger.start(trial.number)
            self._scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]  # nor controller nor trial of Ray's
            self._running.append(trial)
        return bool(self._running)

    def _next_epoch(self, trial: _Trial) -> None:
        number, values = trial.number, self._curves[trial.number].top1
        epoch = self.ledger.trials[number].last_epoch + 1
        if epoch > len(values):
            self.ledger.end(number, "failed", self._curves[number].failure)
            self._scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
            self._running.remove(trial)
            return
        result = {"epoch": epoch, "top1": values[epoch - 1]}
        self.reports.append(Reported(number, epoch, values[epoch - 1]))
        stops = self._scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP  # type: ignore[arg-type]
        if not stops and epoch < self._epochs:
            self.ledger.record(number, result)
            return
        self.ledger.record(number, result, ends_as="finished" if epoch == self._epochs else "pruned")
        self._scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
        self._running.remove(trial)
