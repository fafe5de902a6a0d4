"""Where a run executes, and where its results go."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.section import NAME, Section, Share


class GradientsConfig(Section):
    """What workers send each other of their gradients."""

    kind: Literal["fp32", "bf16", "powersgd", "sign"] = Field(
        "fp32",
        description="powersgd: matrices of low rank; sign: one bit per latent weight of a binary convolution, all else "
        "as bf16. Both send what they have left out with later gradients",
    )
    rank: int = Field(4, ge=1, description="of powersgd's matrices; more is more exact, and more bytes")
    start: Share = Field(0.1, description="share of the run's steps that come first and whole, of powersgd")
    whole_every: int = Field(
        32,
        ge=1,
        description="steps, of powersgd and sign: so often, and in each epoch's last, gradients and what was left out "
        "travel whole, as bf16. Checkpoints are taken after such a step, and a stop waits for one, within its grace",
    )


class ProfileConfig(Section):
    """A trace of some training steps, by torch.profiler."""

    steps: int = Field(0, ge=0, le=1000, description="to trace; 0: none. They are slower, and a trace takes memory")
    after: int = Field(10, ge=1, description="steps of a worker's process that come before; the first compiles")
    ranks: Literal["first", "all"] = Field("first", description="whose steps: rank 0's, or each one's")


class ExecutionConfig(Section):
    """Where and how the run executes."""

    workers: int | tuple[int, int] = Field(
        1,
        description="processes, one device each; [min, max]: as many as there is room for at the time",
    )
    resize_every: float = Field(30.0, gt=0, description="seconds between looks for room for more workers, up to max")
    cpus_per_worker: int = Field(1, ge=1, description="cores that a worker computes with")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs where Ray has any")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of convolutions; state and weights stay fp32")
    kernels: Literal["auto", "reference"] = Field(
        "auto",
        description="auto: on CPUs the compiled passes over norm, gate and neuron and convolutions of bits, on GPUs "
        "torch.compile of the former, where they agree with plain torch on the machine; reference: plain torch",
    )
    memory: Literal["fast", "balanced", "least"] = Field(
        "fast",
        description="what a step keeps for its backward pass, about 8, 2 and 0.3 bytes per neuron and time step "
        "where the compiled passes run. fast: all that it needs; balanced: streams are computed again; least: "
        "convolutions too. Elsewhere balanced repeats block by block, and least stage by stage. Not a bit of what is "
        "trained depends on it. Not with run.compile, which chooses for itself",
    )
    gradients: GradientsConfig = GradientsConfig()
    compile: bool = Field(False, description="torch.compile the network")
    deterministic: bool = Field(False, description="refuse operations that are not reproducible")
    max_failures: int = Field(3, ge=0, description="times a run restarts after losing a worker")
    measure: Literal["none", "epoch", "step"] = Field(
        "step",
        description="epoch: firing, latent weights, gradients of its last step; step: also flips from step to step; "
        "none: only the epoch's flips. A compiled network has no firing and no gradients",
    )
    operations: Literal["none", "last", "epoch"] = Field(
        "last",
        description="validations in which SOPs and MACs are counted, and energy with them: the last, or each epoch's. "
        "Of a compiled network none: it passes no hooks, by which they are counted",
    )
    profile: ProfileConfig = ProfileConfig()
    log_every: int = Field(20, ge=1, description="steps between progress lines and training metrics")

    @field_validator("workers", mode="before")
    @classmethod
    def _a_number_or_a_range(cls, workers: Any) -> Any:
        least, most = workers if isinstance(workers, (list, tuple)) and len(workers) == 2 else (workers, workers)
        if not all(type(each) is int for each in (least, most)) or not 1 <= least <= most:
            raise ValueError("must be a number of workers, or [min, max] with 1 <= min <= max")
        return workers

    @model_validator(mode="after")
    def _one_decides_what_is_kept(self) -> ExecutionConfig:
        if self.compile and self.memory != "fast":
            raise ValueError(
                f"run.memory={self.memory} and run.compile=true would both decide what a step keeps for its backward "
                "pass. Set run.memory=fast, or run.compile=false"
            )
        return self

    @property
    def least_workers(self) -> int:
        """Workers that a run starts with at the least; it waits for them."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that a run takes at the most."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def worlds(self) -> range:
        """Every number of workers that the run may have."""
        return range(self.least_workers, self.most_workers + 1)


class CheckpointConfig(Section):
    """When a checkpoint is committed, and where."""

    uri: str | None = Field(None, description="folder or s3://bucket/prefix; default <store>/checkpoints")
    every: int | None = Field(None, ge=1, description="steps; besides the end of each epoch")
    keep: int = Field(2, ge=1, description="committed checkpoints kept of a run")
    max_age: float = Field(
        3600.0,
        gt=0,
        description="seconds that the newest committed one may grow old while storing fails; then the run ends",
    )
    grace: float = Field(
        20.0,
        ge=0,
        description="seconds that a run which is stopped, resized or preempted may take to save a checkpoint",
    )


class TrackingConfig(Section):
    """MLflow."""

    uri: str | None = Field(None, description="default MLFLOW_TRACKING_URI, else SQLite in <home>")
    experiment: str = Field("agmm", min_length=1, description="name in MLflow")
    register_as: str | None = Field(
        None, pattern=NAME, description="registered model's name; none: the model is only logged"
    )
