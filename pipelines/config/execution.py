"""Where a run executes, and where its results go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.section import NAME, Section


class ExecutionConfig(Section):
    """Where and how the run executes."""

    workers: int = Field(1, ge=1, description="processes, one device each")
    cpus_per_worker: int = Field(1, ge=1, description="cores that a worker computes with")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where Ray has any")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of convolutions; state and weights stay fp32")
    compile: bool = Field(False, description="torch.compile the network")
    deterministic: bool = Field(False, description="refuse operations that are not reproducible")
    max_failures: int = Field(3, ge=0, description="times a run restarts after losing a worker")
    measure: Literal["none", "epoch", "step"] = Field(
        "step",
        description="epoch: firing, latent weights, gradients of its last step; step: also flips from step to step; "
        "none: only the epoch's flips. A compiled network has no firing and no gradients",
    )
    log_every: int = Field(20, ge=1, description="steps between progress lines and training metrics")


class CheckpointConfig(Section):
    """When a checkpoint is committed, and where."""

    uri: str | None = Field(None, description="folder or s3://bucket/prefix; default <store>/checkpoints")
    every: int | None = Field(None, ge=1, description="steps; besides the end of each epoch")
    keep: int = Field(2, ge=1, description="committed checkpoints kept of a run")


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = Field(None, description="default MLFLOW_TRACKING_URI, else SQLite in <home>")
    experiment: str = Field("agmm", min_length=1, description="name in MLflow")
    register_as: str | None = Field(
        None, pattern=NAME, description="registered model's name; none: the model is only logged"
    )
