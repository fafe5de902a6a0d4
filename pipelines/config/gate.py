"""What a model must keep before an alias points at it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.section import Section

# as in agmm.metrics.energy
EnergyConvention = Literal["horowitz_45nm", "paper_table2", "horowitz_45nm_sram", "horowitz_45nm_dram"]


class Rule(Section):
    """Bounds of one metric: against the version that the alias has now (`worse_by`, `ratio`), or by themselves."""

    worse_by: float | None = Field(None, ge=0, description="most by which it may be worse, in the metric's own unit")
    ratio: float | None = Field(
        None, gt=0, description="of the other's value: at most that where less is better, at least that where more is"
    )
    at_least: float | None = Field(None, ge=0, description="least value")
    at_most: float | None = Field(None, ge=0, description="greatest value")

    @property
    def bounds(self) -> dict[str, float]:
        """What the rule asks for, by name."""
        named = {name: getattr(self, name) for name in Rule.model_fields}
        return {name: value for name, value in named.items() if value is not None}

    @model_validator(mode="after")
    def _asks_for_something(self) -> Rule:
        if not self.bounds:
            raise ValueError(f"asks for nothing. Give one of {', '.join(Rule.model_fields)}, or null for no rule")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"nothing is at least {self.at_least} and at most {self.at_most}")
        return self


class ShareRule(Rule):
    """Bounds of a metric between 0 and 1."""

    worse_by: float | None = Field(None, ge=0, le=1, description="most by which it may be worse: 0.01 is one in 100")
    at_least: float | None = Field(None, ge=0, le=1, description="least value, 0 to 1")
    at_most: float | None = Field(None, ge=0, le=1, description="greatest value, 0 to 1")


class EnergyRule(Rule):
    """Bounds of the energy of one image, in millijoules under a convention."""

    convention: EnergyConvention = Field("horowitz_45nm", description="what an operation costs")


class GateConfig(Section):
    """The rules of a promotion, by metric. That hashes and data are right is no rule: it is always asked for."""

    top1: ShareRule | None = Field(ShareRule(worse_by=0.002), description="accuracy, 0 to 1")
    top5: ShareRule | None = Field(None, description="the same of the five likeliest classes")
    loss: Rule | None = Field(None, description="cross-entropy, nats")
    size_mb: Rule | None = Field(None, description="decimal megabytes at one bit a binary weight")
    sops: Rule | None = Field(None, description="synaptic operations of one image")
    macs: Rule | None = Field(None, description="multiply-accumulates of one image")
    energy_mj: EnergyRule | None = Field(None, description="energy of one image, millijoules")
    firing: ShareRule | None = Field(None, description="share of neurons and time steps that fire; less is better")
    flips: ShareRule | None = Field(None, description="share of signs that the last epoch of training flipped")
    same_data: bool = Field(True, description="refuse where the version that the alias has was judged on other images")

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules that there are, by metric."""
        return {name: rule for name in type(self).model_fields if isinstance(rule := getattr(self, name), Rule)}
