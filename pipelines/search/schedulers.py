"""Who is ended early: Ray's schedulers, told what the ledger remembers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from pipelines.config import TuneConfig
from pipelines.errors import UserError
from pipelines.search.ledger import Ledger
from pipelines.search.objectives import MEASURES
from pipelines.search.records import Stage, TrialRecord

_TIME = "epoch"


@dataclass(frozen=True)
class _Past:
    """What ended before this driver began, in the place of Ray's trial."""

    trial_id: str


class _Remembering(FIFOScheduler):
    """Comes before one of Ray's schedulers, and tells it what trials reported to the drivers before this one.

    A trial that goes on reports only the epochs after its checkpoint, under a new id. So its earlier ones are told
    when it is added, under that id: it keeps the rungs that it passed, and is not its own competitor. An epoch that it
    repeats is not judged again. A metric that is not finite ends a trial, and is compared with nobody.
    """

    def remember(self, ledger: Ledger, stage: Stage) -> None:
        """Take what ended trials reported, and look into `ledger` for those that go on."""
        self._ledger = ledger
        self._seen: dict[str, int] = defaultdict(int)
        for record in ledger.of(stage):
            if record.has_ended:
                self._tell(None, _Past(f"trial {record.number}"), record)

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        """A trial is there, or is there again after a failure."""
        self._tell(controller, trial, self._ledger.trials[trial.config["number"]])
        super().on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        epoch = result.get(_TIME, 0)
        if epoch <= self._seen[trial.trial_id]:
            return str(TrialScheduler.CONTINUE)
        self._seen[trial.trial_id] = epoch
        if not self._is_finite(result):
            return str(TrialScheduler.STOP)
        return str(super().on_trial_result(controller, trial, result))

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial has ended, with `result` once more."""
        if self._is_finite(result):
            super().on_trial_complete(controller, trial, result)
        else:
            super().on_trial_remove(controller, trial)

    def _tell(self, controller: Any, trial: Any, record: TrialRecord) -> None:
        """Let Ray's scheduler note what it has not seen of a trial: `on_trial_complete` notes without judging."""
        news = [metrics for metrics in record.epochs if metrics[_TIME] > self._seen[trial.trial_id]]
        # Ray gives the last result of a trial a second time when it ends; not of one that failed
        again = news[-1:] if record.state in ("finished", "pruned") else []
        for metrics in filter(self._is_finite, [*news, *again]):
            super().on_trial_add(controller, trial)
            super().on_trial_complete(controller, trial, dict(metrics))
        self._seen[trial.trial_id] = max(self._seen[trial.trial_id], record.last_epoch)

    def _is_finite(self, result: Mapping[str, Any]) -> bool:
        return math.isfinite(result.get(str(self.metric), 0.0))


class _Asha(_Remembering, ASHAScheduler):
    """Asynchronous successive halving over a ledger."""


class _Median(_Remembering, MedianStoppingRule):
    """The median stopping rule over a ledger."""


def build_scheduler(tune: TuneConfig, max_epochs: int, ledger: Ledger, stage: Stage = "search") -> TrialScheduler:
    """The recipe's `tune.scheduler` for trials of `max_epochs`, which knows the stage's trials in the ledger.

    It needs `epoch` and the first objective's metric in what trials report, and `number` in their configuration.
    Raises UserError where a trial is over before it may be ended early.
    """
    if tune.scheduler == "none":
        return FIFOScheduler()
    check_grace(tune, max_epochs)
    measure = MEASURES[tune.objectives[0]]
    shared = {"time_attr": _TIME, "metric": measure.key, "mode": measure.mode, "grace_period": tune.grace}
    scheduler: _Remembering
    if tune.scheduler == "asha":
        scheduler = _Asha(**shared, max_t=max_epochs, reduction_factor=tune.reduction, brackets=1)
    else:
        # a trial with too few to be compared with would be paused for others; ours cannot be
        scheduler = _Median(**shared, min_time_slice=math.inf)
    scheduler.remember(ledger, stage)
    return scheduler


def check_grace(tune: TuneConfig, max_epochs: int) -> None:
    """Raise UserError where a trial of `max_epochs` is over before the scheduler may end it, or change it."""
    if tune.scheduler == "pbt":
        if tune.perturb_every >= max_epochs:
            raise UserError(
                f"tune.perturb_every={tune.perturb_every} is not before the last of the {max_epochs} epochs of a "
                "trial. Lower it."
            )
    elif tune.scheduler != "none" and tune.grace > max_epochs:
        raise UserError(f"tune.grace={tune.grace} is past the {max_epochs} epochs of a trial. Lower it.")


def rungs(tune: TuneConfig, max_epochs: int) -> list[int]:
    """The epochs after which asha compares, and the last one; of pbt, whose trials swap weights, that alone."""
    found, rung = [], float(max_epochs if tune.scheduler == "pbt" else tune.grace)
    while rung < max_epochs:
        found.append(math.ceil(rung))
        rung *= tune.reduction
    return [*sorted(set(found)), max_epochs]
