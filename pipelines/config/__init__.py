"""The one typed tree that describes a run.

The tree is frozen, unknown keys are refused with the known ones named, and the resolved tree travels with the run, its
checkpoints and its registered model. `pipelines.recipe` makes it from a recipe and `--set`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from pipelines.config.data import AugmentConfig as AugmentConfig
from pipelines.config.data import DataConfig as DataConfig
from pipelines.config.data import MixConfig as MixConfig
from pipelines.config.execution import CheckpointConfig, ExecutionConfig, TrackingConfig
from pipelines.config.execution import GradientsConfig as GradientsConfig
from pipelines.config.execution import ProfileConfig as ProfileConfig
from pipelines.config.model import ModelConfig as ModelConfig
from pipelines.config.search import TuneConfig as TuneConfig
from pipelines.config.section import NAME, Section, parse_section
from pipelines.config.training import DistillConfig as DistillConfig
from pipelines.config.training import LossConfig
from pipelines.config.training import OptimConfig as OptimConfig


class RunConfig(Section):
    """A whole run."""

    name: str = Field(pattern=NAME, description="letters, digits, dots, dashes, underscores; names the run")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and augmentation")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: ExecutionConfig = ExecutionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    tune: TuneConfig | None = Field(None, description="how `agmm tune` searches; training takes no notice")

    @model_validator(mode="after")
    def _every_worker_has_an_image(self) -> RunConfig:
        if self.data.batch_size < self.run.most_workers:
            raise ValueError(
                f"data.batch_size is the global batch and must be at least run.workers: "
                f"{self.data.batch_size} images for {self.run.most_workers} workers. Raise one or lower the other."
            )
        return self

    @model_validator(mode="after")
    def _the_neuron_can_be_trained(self) -> RunConfig:
        if self.model.neuron.kind == "rate_if":
            raise ValueError("model.neuron.kind=rate_if is what `agmm convert` makes. Train relu, and convert it.")
        if self.model.neuron.kind == "relu" and self.model.time_steps != 1:
            raise ValueError("model.neuron.kind=relu knows no time. Set model.time_steps=1.")
        return self

    @model_validator(mode="after")
    def _bop_sees_gradients_as_they_are(self) -> RunConfig:
        if self.optim.optimizer == "bop" and self.run.gradients.kind != "fp32":
            raise ValueError(
                f"run.gradients.kind={self.run.gradients.kind} changes how large gradients are, and by that "
                "optim.optimizer=bop flips weights. Set one of them to fp32 or sgd"
            )
        return self

    @model_validator(mode="after")
    def _the_resolution_is_reached(self) -> RunConfig:
        ramp = self.data.progressive
        if ramp.start is not None and ramp.to_epoch > self.optim.epochs:
            raise ValueError(
                f"data.progressive.to_epoch={ramp.to_epoch} is past the run's {self.optim.epochs} epochs, so training "
                "would never see data.resolution. Lower it, or raise optim.epochs"
            )
        return self

    def total_steps(self, train_images: int) -> int:
        """Optimiser steps of the whole run; `train_images` are the data set's, of which data.share is trained on."""
        steps = self.optim.epochs * self._epoch_steps(train_images)
        return min(steps, self.optim.max_steps or steps)

    def total_epochs(self, train_images: int) -> int:
        """Epochs that the whole run begins, each of which ends with a validation."""
        return -(-self.total_steps(train_images) // self._epoch_steps(train_images))

    def _epoch_steps(self, train_images: int) -> int:
        return self.data.kept(train_images) // self.data.batch_size


# Fields that say where a run executes, not what it computes: a resume may change them.
FREE_ON_RESUME = frozenset({"run", "checkpoint", "tracking", "tune", "data.uri", "data.loader", "data.threads"})
# ... but these parts of `run` change the numbers.
_GRADIENTS = (f"run.gradients.{name}" for name in GradientsConfig.model_fields)
FIXED_IN_RUN = frozenset({"run.precision", "run.deterministic", "run.kernels", *_GRADIENTS})


def parse_config(tree: Mapping[str, Any], *, origin: str) -> RunConfig:
    """A plain mapping as a checked tree; `origin` names it in errors. Raises UserError."""
    return parse_section(RunConfig, tree, origin=origin, what="run")


def config_differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Fields that differ and that a resume may not change, as `key: old -> new` lines."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = [key for key in before | after if before.get(key) != after.get(key) and not _is_free(key)]
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _is_free(key: str) -> bool:
    return key not in FIXED_IN_RUN and (key in FREE_ON_RESUME or key.split(".")[0] in FREE_ON_RESUME)
