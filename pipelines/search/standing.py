"""Where a search stands, from its ledger and what running trials tell: the rows and sentences of the live view."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipelines.config.search import Objective
from pipelines.progress import clock
from pipelines.search.budget import Budget
from pipelines.search.ledger import Ledger
from pipelines.search.live import Row, Standing, cell, describe
from pipelines.search.objectives import MEASURES, best, value_of
from pipelines.search.records import Stage, TrialRecord


class Standings:
    """What one stage of a search looks like now. `limit`: its trials; `epochs`: of a trial in full."""

    def __init__(
        self, ledger: Ledger, budget: Budget, stage: Stage, *, limit: int, epochs: int, objective: Objective
    ) -> None:
        self._ledger, self._budget, self._stage = ledger, budget, stage
        self._limit, self._epochs, self._objective = limit, epochs, objective
        self._told: dict[int, Mapping[str, Any]] = {}
        self._started, self._had = time.monotonic(), self._epochs_done()

    def progress(self, number: int, item: Mapping[str, Any]) -> None:
        """A trial tells its step, speed and ETA."""
        self._told[number] = item

    def forget(self, number: int) -> None:
        """A trial has ended."""
        self._told.pop(number, None)

    def value_of(self, record: TrialRecord) -> str:
        """A trial's objective in words."""
        value = value_of(record, self._objective)
        return "" if value is None else f"{self._objective} {cell(value)}"

    def now(self) -> Standing:
        """The standing at this moment."""
        records = self._ledger.of(self._stage)
        ended = [record for record in records if record.has_ended]
        running = [record for record in records if record.state == "running"]
        return Standing(
            ended=len(ended),
            trials=self._limit,
            best=self._best(records),
            budget=self._left(),
            eta=self._eta(ended, running),
            rows=[self._row(record) for record in running],
        )

    def _best(self, records: list[TrialRecord]) -> str:
        found = best(records, self._objective)
        return "" if found is None else f"{self.value_of(found)}, trial {found.number} ({describe(found.values)})"

    def _left(self) -> str:
        left = self._budget.left()
        parts = [f"{max(self._limit - len(self._ledger.of(self._stage)), 0)} trials to start"]
        if left.epochs is not None:
            parts.append(f"{left.epochs} epochs")
        if left.seconds is not None:
            parts.append(clock(left.seconds))
        return ", ".join(parts)

    def _eta(self, ended: list[TrialRecord], running: list[TrialRecord]) -> float | None:
        """Seconds to the end at this driver's pace, if trials to come are as long as those that have ended."""
        done = self._epochs_done() - self._had
        if not done or not ended:
            return None
        mean = sum(len(record.epochs) for record in ended) / len(ended)
        to_come = max(self._limit - len(ended) - len(running), 0)  # a resume may lower the limit
        epochs = to_come * mean + sum(max(mean - len(record.epochs), 0) for record in running)
        left = self._budget.left()
        eta = min(epochs, epochs if left.epochs is None else left.epochs) * (time.monotonic() - self._started) / done
        return eta if left.seconds is None else min(eta, left.seconds)

    def _epochs_done(self) -> int:
        return sum(len(record.epochs) for record in self._ledger.of(self._stage))

    def _row(self, record: TrialRecord) -> Row:
        told = self._told.get(record.number, {})
        key = MEASURES[self._objective].key
        value = record.epochs[-1].get(key) if record.epochs else None
        return Row(
            number=record.number,
            values=record.values,
            epoch=record.last_epoch,
            value=value,
            speed=told.get("images_per_second"),
            eta=told.get("eta"),
        )
