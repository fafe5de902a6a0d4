"""What a search may still spend: trials, epochs and hours, over all the drivers that it had."""

from __future__ import annotations

from typing import Any, NamedTuple

from ray.tune import Stopper

from pipelines.config import TuneConfig
from pipelines.search.ledger import Ledger


class Left(NamedTuple):
    """What is left, None where there is no limit."""

    trials: int
    epochs: int | None
    seconds: float | None


class Budget(Stopper):
    """Ends a search whose epochs or hours are used up; Ray asks it between two results.

    Trials that run together may go past the limit by an epoch each. Ray says nothing of those that it then ends.
    """

    def __init__(self, tune: TuneConfig, ledger: Ledger) -> None:
        self._tune, self._ledger = tune, ledger

    def left(self) -> Left:
        """What is left. Epochs count in every stage, trials as drawn for the search and its proxy."""
        trials = self._ledger.trials.values()
        drawn = sum(record.stage != "full" for record in trials)
        epochs = sum(len(record.epochs) for record in trials)
        tune, seconds = self._tune, self._ledger.seconds
        return Left(
            max(tune.trials - drawn, 0),
            None if tune.epochs is None else max(tune.epochs - epochs, 0),
            None if tune.hours is None else max(tune.hours * 3600 - seconds, 0.0),
        )

    @property
    def is_used_up(self) -> bool:
        """Whether no trial may train on."""
        left = self.left()
        return left.epochs == 0 or left.seconds == 0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002, of Ray's making
        """No single trial is ended by the budget."""
        return False

    def stop_all(self) -> bool:
        """Whether the search ends."""
        return self.is_used_up
