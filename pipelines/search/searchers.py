"""Where trials come from: those that a killed search left, then new draws.

What is drawn follows from the seed, the trial's number and, for tpe, the ledger. Nothing else is remembered, so a
resumed search draws what it would have drawn, and two searches of one seed draw alike, whatever ends their trials.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from pipelines.config import RunConfig, TuneConfig
from pipelines.config.search import SpaceConfig
from pipelines.search.budget import Budget
from pipelines.search.ledger import Ledger
from pipelines.search.objectives import MEASURES, new_study, value_of
from pipelines.search.records import Stage, TrialRecord
from pipelines.search.space import Values, domains

Draw = Callable[[int], Values]  # of the trial's number

_STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Numbered(Searcher):
    """Ray's searcher over a ledger: gives trials as `{"number": n, "values": {...}}`, each noted before it is given.

    First those that have not ended, with their old numbers and values, then draws, up to `limit` trials of the stage
    in all and while the budget lasts.
    """

    def __init__(self, ledger: Ledger, draw: Draw, budget: Budget, limit: int, stage: Stage = "search") -> None:
        super().__init__()
        self._ledger, self._draw, self._budget, self._limit, self._stage = ledger, draw, budget, limit, stage
        self._waiting = deque(ledger.unfinished(stage))
        self._numbers: dict[str, int] = {}

    def number_of(self, trial_id: str) -> int:
        """The number of one of Ray's trials. Raises KeyError for one that did not come from here."""
        return self._numbers[trial_id]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial, or FINISHED."""
        record = None if self._budget.is_used_up else self._next()
        if record is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = record.number
        return {"number": record.number, "values": dict(record.values)}

    def _next(self) -> TrialRecord | None:
        if self._waiting:
            return self._waiting.popleft()
        if len(self._ledger.of(self._stage)) >= self._limit:
            return None
        return self._ledger.draw(self._draw(self._ledger.next_number), self._stage)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the ledger has it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""


def build_draw(config: RunConfig, ledger: Ledger, stage: Stage = "search") -> Draw:
    """How the recipe's `tune.searcher` draws."""
    tune = config.tune or TuneConfig()
    if tune.searcher == "random":
        return random_draw(tune.space, config.seed)
    return tpe_draw(tune, config.seed, ledger, stage)


def random_draw(space: SpaceConfig, seed: int) -> Draw:
    """Values that follow from (seed, number) alone."""

    def draw(number: int) -> Values:
        study = new_study(("top1",), optuna.samplers.RandomSampler(seed=_seed(seed, number)))
        return study.ask(domains(space)).params

    return draw


def tpe_draw(tune: TuneConfig, seed: int, ledger: Ledger, stage: Stage = "search") -> Draw:
    """Values by Optuna's TPE, from (seed, number) and the stage's trials in the ledger.

    The study is filled anew for each draw, so that there is no state to lose. Ray's OptunaSearch, which keeps one,
    cannot be told a trial's end again, and takes one that was ended early for one that was trained in full.
    """

    def draw(number: int) -> Values:
        sampler = optuna.samplers.TPESampler(seed=_seed(seed, number), constant_liar=True)
        study = new_study(tune.objectives, sampler)
        study.add_trials([_told(record, tune) for record in ledger.of(stage)])
        return study.ask(domains(tune.space)).params

    return draw


def given_draw(ledger: Ledger, values: Sequence[Values], stage: Stage) -> Draw:
    """A list, one after the other; `Numbered` needs its length as the limit."""
    return lambda _: values[len(ledger.of(stage))]


def _told(record: TrialRecord, tune: TuneConfig) -> FrozenTrial:
    """A trial in Optuna's terms: one that failed, or ended without a value, tells nothing; one not ended is running."""
    values = [value for each in tune.objectives if (value := value_of(record, each)) is not None]
    state = _STATES.get(record.state, TrialState.RUNNING)
    if record.has_ended and len(values) < len(tune.objectives):
        state = TrialState.FAIL
    return optuna.trial.create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=dict(record.values),
        distributions=domains(tune.space),
        intermediate_values=_reports(record, tune),
    )


def _reports(record: TrialRecord, tune: TuneConfig) -> dict[int, float]:
    """The values by epoch, by which Optuna ranks trials that ended early; it has none of several objectives."""
    if len(tune.objectives) > 1:
        return {}
    key = MEASURES[tune.objectives[0]].key
    return {int(metrics["epoch"]): float(metrics[key]) for metrics in record.epochs if key in metrics}


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
