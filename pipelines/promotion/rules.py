"""A gate's rules over figures: pure, without a service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.gate import EnergyRule, GateConfig, Rule

_MORE_IS_BETTER = frozenset({"top1", "top5"})
_MEASURED = ("top1", "top5", "loss", "size_mb", "sops", "macs", "firing")
_SLACK = 1e-9  # 0.9 - 0.898 is a little more than 0.002


@dataclass(frozen=True)
class Check:
    """One bound of one rule. `limit` is what it comes to, None where it cannot be told.

    `passed` is None for a bound against a current version where there is none.
    """

    metric: str
    bound: str
    asked: float
    limit: float | None
    candidate: float | None
    current: float | None
    passed: bool | None
    reason: str = ""


def figures(evaluation: Mapping[str, Any], trained: Mapping[str, float]) -> dict[str, float]:
    """What rules may ask for: of an evaluation, and the `flips` that training left in the model's card.

    Energy goes by convention, as `energy_mj.horowitz_45nm`. What there is none of is not in it.
    """
    found = {name: evaluation.get(name) for name in _MEASURED} | {"flips": trained.get("flips")}
    found |= {f"energy_mj.{name}": value for name, value in evaluation.get("energy_mj", {}).items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def judge(gate: GateConfig, candidate: Mapping[str, float], current: Mapping[str, float] | None) -> list[Check]:
    """Every bound of a gate over the figures of a candidate and of the current version, if there is one.

    A figure that is missing, NaN or infinite never passes.
    """
    checks = []
    for metric, rule in gate.rules.items():
        key = f"{metric}.{rule.convention}" if isinstance(rule, EnergyRule) else metric
        checks += [_check(key, rule, bound, candidate, current) for bound in rule.bounds]
    return checks


def standard_error(share: float, count: float) -> float:
    """Binomial standard error of a share of `count` images that are right."""
    return math.sqrt(share * (1 - share) / count) if count else math.inf


def _check(
    key: str, rule: Rule, bound: str, candidate: Mapping[str, float], current: Mapping[str, float] | None
) -> Check:
    asked, value = rule.bounds[bound], candidate.get(key)
    relative = bound in ("worse_by", "ratio")
    other = current.get(key) if current is not None else None
    limit = _limit(key, bound, asked, other)
    if not _usable(value):
        passed, reason = False, f"{key} of the candidate is {_absent(value)}; the gate asks for it"
    elif relative and current is None:
        passed, reason = None, ""
    elif limit is None:
        passed, reason = False, f"{key} of the current version is {_absent(other)}; `{bound}` compares with it"
    else:
        assert value is not None, "a usable figure is one"
        passed, reason = _holds(key, bound, asked, value, limit, other)
    return Check(key, bound, asked, limit, value, other, passed, reason)


def _limit(key: str, bound: str, asked: float, other: float | None) -> float | None:
    if bound not in ("worse_by", "ratio"):
        return asked
    if other is None or not math.isfinite(other):
        return None
    if bound == "ratio":
        return asked * other
    return other - asked if key in _MORE_IS_BETTER else other + asked


def _holds(key: str, bound: str, asked: float, value: float, limit: float, other: float | None) -> tuple[bool, str]:
    is_floor = bound == "at_least" or (bound != "at_most" and key in _MORE_IS_BETTER)
    slack = _SLACK * max(1.0, abs(limit))
    if value >= limit - slack if is_floor else value <= limit + slack:
        return True, ""
    against = f" (`{bound}: {asked:g}` against {figure(other)})" if bound in ("worse_by", "ratio") else ""
    return False, f"{key} is {figure(value)}, {'below' if is_floor else 'above'} {figure(limit)}{against}"


def figure(value: float | None) -> str:
    """A figure for people: five digits, whole where it is large; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"


def _usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _absent(value: float | None) -> str:
    return "missing" if value is None else str(value)
