"""Where the weights of a trial come from whose values changed during training (`tune.scheduler=pbt`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipelines.search.live import describe
from pipelines.search.records import TrialRecord
from pipelines.search.space import Values


class Span(NamedTuple):
    """From the epoch `first` on, the weights were trained by this trial with these values."""

    first: int
    trial: int
    values: Values


def lineage(trials: Mapping[int, TrialRecord], record: TrialRecord, until: int | None = None) -> list[Span]:
    """What the weights were trained with that `record` had after epoch `until`, by epoch; none: has now."""
    past = [each for each in record.mutations if until is None or each.epoch < until]
    values = record.values if len(past) == len(record.mutations) else record.mutations[len(past)].values
    if not past:
        return [Span(1, record.number, values)]
    fork = past[-1]
    inherited = lineage(trials, trials[fork.parent], fork.epoch)
    return [*inherited, Span(fork.epoch + 1, record.number, values)]


def in_words(spans: list[Span]) -> str:
    """`from epoch 1 leak 0.3 (trial 2), from epoch 4 leak 0.36 (trial 5)`."""
    return ", ".join(f"from epoch {each.first} {describe(each.values)} (trial {each.trial})" for each in spans)
