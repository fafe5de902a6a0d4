"""What trials are judged by: their values, the best one, the Pareto front, and how early ranks foretell late ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import optuna
from optuna.study import StudyDirection
from scipy import stats

from pipelines.config.search import Objective
from pipelines.search.records import TrialRecord


class Measure(NamedTuple):
    """Where an objective is in a trial's metrics, which way is better, and what it is counted in ("" for shares)."""

    key: str
    mode: Literal["max", "min"]
    unit: str


MEASURES: dict[Objective, Measure] = {
    "top1": Measure("top1", "max", ""),
    "sops": Measure("sops", "min", "operations"),
    "macs": Measure("macs", "min", "operations"),
    "energy_mj": Measure("energy_mj/horowitz_45nm", "min", "mJ"),
    "size_mb": Measure("size_mb", "min", "MB"),
    "flips": Measure("flips", "min", ""),
}


class RungCorrelation(NamedTuple):
    """Rank correlations between two epochs, over the `n` trials that reached both; None where there is no telling."""

    rung: int
    later: int
    n: int
    spearman: float | None
    kendall: float | None


def value_of(record: TrialRecord, objective: Objective) -> float | None:
    """The value at the trial's last epoch; None where it failed, or has no finite one."""
    return None if record.state == "failed" else value_at(record, objective, record.last_epoch)


def value_at(record: TrialRecord, objective: Objective, epoch: int) -> float | None:
    """The value after `epoch`, from 1; None where there is no finite one."""
    key = MEASURES[objective].key
    found = [metrics[key] for metrics in record.epochs if metrics["epoch"] == epoch and key in metrics]
    return float(found[0]) if found and math.isfinite(found[0]) else None


def ranked(records: Iterable[TrialRecord], objective: Objective) -> list[TrialRecord]:
    """The finished trials, best first; ties: the first drawn."""
    sign = 1 if MEASURES[objective].mode == "max" else -1
    finished = [record for record in records if record.state == "finished" and value_of(record, objective) is not None]
    return sorted(finished, key=lambda record: (-sign * (value_of(record, objective) or 0.0), record.number))


def best(records: Iterable[TrialRecord], objective: Objective) -> TrialRecord | None:
    """The best of the finished trials; before one has finished, of those that trained longest. A tie: the first."""
    sign = 1 if MEASURES[objective].mode == "max" else -1

    def merit(record: TrialRecord) -> tuple[bool, int, float, int]:
        reached = 0 if record.state == "finished" else record.last_epoch
        return record.state == "finished", reached, sign * (value_of(record, objective) or 0.0), -record.number

    return max((record for record in records if value_of(record, objective) is not None), key=merit, default=None)


def pareto_front(records: Iterable[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """The finished trials that no other finished one beats in one objective while being as good in all, by number."""
    finished = sorted((each for each in records if each.state == "finished"), key=lambda each: each.number)
    rated = [(record, _values(record, objectives)) for record in finished]
    whole = [(record, values) for record, values in rated if values is not None]
    study = new_study(objectives)
    study.add_trials([optuna.trial.create_trial(values=values) for _, values in whole])
    front = {trial.number for trial in study.best_trials}
    return [record for index, (record, _) in enumerate(whole) if index in front]


def rung_correlations(
    records: Iterable[TrialRecord], rungs: Sequence[int], objective: Objective
) -> list[RungCorrelation]:
    """For each pair of epochs in `rungs`, how the trials' ranks agree.

    Only those that were not ended between the two count, the better ones: a correlation over them understates what
    the earlier rung tells.
    """
    records = list(records)
    rows = []
    for rung, later in combinations(sorted(rungs), 2):
        pairs = [(value_at(each, objective, rung), value_at(each, objective, later)) for each in records]
        rows.append(RungCorrelation(rung, later, *rank_correlation(pairs)))
    return rows


def rank_correlation(
    pairs: Iterable[tuple[float | None, float | None]],
) -> tuple[int, float | None, float | None]:
    """How many pairs are whole, and Spearman's rho and Kendall's tau-b over them, None where one side is all alike."""
    whole = [(one, other) for one, other in pairs if one is not None and other is not None]
    if any(len({pair[side] for pair in whole}) < 2 for side in (0, 1)):
        return len(whole), None, None
    ones, others = zip(*whole, strict=True)
    return len(whole), _statistic(stats.spearmanr, ones, others), _statistic(stats.kendalltau, ones, others)


def new_study(objectives: Sequence[Objective], sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """An Optuna study of these objectives, in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each study
    ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    return optuna.create_study(directions=[ways[MEASURES[each].mode] for each in objectives], sampler=sampler)


def _values(record: TrialRecord, objectives: Sequence[Objective]) -> list[float] | None:
    values = [value for each in objectives if (value := value_of(record, each)) is not None]
    return values if len(values) == len(objectives) else None


def _statistic(measure: Callable[..., object], ones: Sequence[float], others: Sequence[float]) -> float:
    return float(measure(ones, others).statistic)  # type: ignore[attr-defined]
