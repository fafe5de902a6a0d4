"""How `agmm tune` searches: what it draws, what it judges by, and when it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.config.section import Section

_Interval = tuple[float, float]
Objective = Literal["top1", "sops", "macs", "energy_mj", "size_mb", "flips"]


class Drawn(Section):
    """How one value is drawn: one of `uniform` (`step`: quantised), `loguniform` and `choice`."""

    uniform: _Interval | None = Field(None, description="[low, high], all equally likely")
    loguniform: _Interval | None = Field(None, description="[low, high], all orders of magnitude equally likely")
    choice: tuple[bool | int | float | str, ...] | None = Field(None, description="a list to take one of")
    step: float | None = Field(None, gt=0, description="of uniform: only low, low + step, ...")

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict | Drawn):
            # pydantic makes its own error of this one alone
            raise ValueError("must say how it is drawn, as {uniform: [0, 1]} or {choice: [2, 4]}")  # noqa: TRY004
        return value

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Drawn:
        kinds = {"uniform": self.uniform, "loguniform": self.loguniform, "choice": self.choice}
        given = [name for name, value in kinds.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"must be one of uniform, loguniform and choice, as {{uniform: [0, 1]}}; got {given}")
        if self.step is not None and self.uniform is None:
            raise ValueError(f"step goes with uniform, not with {given[0]}")
        return self

    @model_validator(mode="after")
    def _has_room(self) -> Drawn:
        low, high = self.uniform or self.loguniform or (0, 1)
        if not low < high:
            raise ValueError(f"[low, high] needs low < high, got [{low}, {high}]")
        if self.loguniform and low <= 0:
            raise ValueError(f"loguniform needs low > 0, got {low}")
        if self.choice is not None and (
            not self.choice or any(a == b for a, b in pairwise(sorted(map(repr, self.choice))))
        ):
            raise ValueError(f"choice needs values that differ, got {list(self.choice)}")
        return self

    @model_validator(mode="after")
    def _has_whole_steps(self) -> Drawn:
        if self.uniform is not None and self.step is not None:
            low, high = self.uniform
            steps = (high - low) / self.step
            if round(steps) < 1 or abs(steps - round(steps)) > 1e-8:
                raise ValueError(f"step must divide high - low, got {self.step} for [{low}, {high}]")
        return self

    @property
    def edges(self) -> tuple[bool | int | float | str, ...]:
        """The values at which a configuration is checked: all of a choice, both ends of an interval."""
        return self.choice or self.uniform or self.loguniform or ()


class SpaceConfig(Section):
    """What a trial draws; `null` takes a field out. `--set tune.space.leak={uniform: [0, 0.9]}`."""

    leak: Drawn | None = Field(Drawn(uniform=(0, 1)), description="model.neuron.leak")
    threshold: Drawn | None = Field(Drawn(uniform=(0.5, 1.5)), description="model.neuron.threshold")
    surrogate_width: Drawn | None = Field(Drawn(loguniform=(0.5, 2)), description="model.neuron.surrogate_width")
    lr: Drawn | None = Field(None, description="optim.lr")
    weight_decay: Drawn | None = Field(None, description="optim.weight_decay")
    time_steps: Drawn | None = Field(None, description="model.time_steps")
    method: Drawn | None = Field(None, description="model.method")
    gate_scope: Drawn | None = Field(None, description="model.gate.scope, where the method has a gate")

    @property
    def drawn(self) -> dict[str, Drawn]:
        """The fields that are drawn, by name."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _something_is_drawn(self) -> SpaceConfig:
        if not self.drawn:
            raise ValueError(f"nothing is drawn. Give one of {', '.join(type(self).model_fields)}")
        return self


class ProxyConfig(Section):
    """A cheaper training that sorts the configurations before the best of them are trained in full."""

    share: float = Field(0.25, gt=0, le=1, description="of the training images")
    resolution: int | None = Field(None, ge=1, description="pixels a side; default the recipe's")
    epochs: int | None = Field(None, ge=1, description="of the cheaper training; default the recipe's")
    top: int = Field(4, ge=2, description="configurations that are trained in full afterwards")


class TuneConfig(Section):
    """A search over trainings of the recipe."""

    space: SpaceConfig = SpaceConfig()
    trials: int = Field(16, ge=1, le=100_000, description="configurations to try")
    epochs: int | None = Field(None, ge=1, description="to train in all trials together; none: no limit")
    hours: float | None = Field(None, gt=0, description="after which no trial goes on; none: no limit")
    concurrent: int | None = Field(None, ge=1, description="trials at a time; default as many as there is room for")
    searcher: Literal["random", "tpe"] = Field("random", description="tpe: Optuna's tree-structured Parzen estimator")
    scheduler: Literal["none", "asha", "median", "pbt"] = Field(
        "asha",
        description="ends trials early: asynchronous successive halving, or those below the median. pbt: population "
        "based training of all trials, in which the worst go on from the best ones' weights with changed values",
    )
    perturb_every: int = Field(1, ge=1, description="of pbt: epochs after which the population is compared")
    grace: int = Field(1, ge=1, description="epochs that every trial gets before it may be ended early")
    reduction: float = Field(
        3.0, gt=1, description="of asha: a rung is so many times the one before; 1 in so many stays"
    )
    objectives: tuple[Objective, ...] = Field(
        ("top1",), min_length=1, description="the first is what schedulers judge by; several: a Pareto front"
    )
    hang_after: float = Field(600.0, gt=0, description="seconds without a sign of life before a trial is ended")
    retries: int = Field(1, ge=0, description="times a trial starts again after a crash")
    proxy: ProxyConfig = ProxyConfig()

    @model_validator(mode="after")
    def _objectives_differ(self) -> TuneConfig:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives must differ, got {list(self.objectives)}")
        return self

    @model_validator(mode="after")
    def _population_is_one(self) -> TuneConfig:
        if self.scheduler == "pbt" and (self.trials < 2 or self.searcher != "random"):
            raise ValueError(
                "scheduler=pbt compares at least 2 trials, all drawn before the first is trained: it needs trials >= 2 "
                f"and searcher=random, got trials={self.trials} and searcher={self.searcher}"
            )
        return self
