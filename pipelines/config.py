"""The one typed tree that describes a run.

The tree is frozen, unknown keys are refused with the known ones named, and the resolved tree travels with the run, its
checkpoints and its registered model. `pipelines.recipe` makes it from a recipe and `--set`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import UserError

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Means = tuple[_Share, _Share, _Share]
_Deviations = tuple[_Positive, _Positive, _Positive]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class RandAugmentConfig(_Section):
    """RandAugment, as torchvision has it."""

    num_ops: int = Field(2, ge=1, le=16, description="operations an image goes through")
    magnitude: int = Field(9, ge=0, le=30, description="strength of each, the same for all")


class MixConfig(_Section):
    """Mixup and CutMix of neighbours in the epoch's order; each worker's share of a batch must be even."""

    mixup: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha), from which Mixup draws shares; 0: off")
    cutmix: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha), from which CutMix draws shares; 0: off")
    probability: _Share = Field(1.0, description="share of the pairs that are mixed")
    switch_probability: _Share = Field(0.5, description="share of CutMix among mixed pairs where both are on")

    @property
    def enabled(self) -> bool:
        """Whether any pair may be mixed."""
        return self.probability > 0 and max(self.mixup, self.cutmix) > 0


class AugmentConfig(_Section):
    """What training does to an image, in this order, or to all frames of a recording.

    Every draw is a function of (seed, epoch, sample id).
    """

    crop: Literal["none", "pad", "random_resized", "roll"] = Field(
        "none", description="how the training crop is drawn; `random_resized` is for images, `roll` for event frames"
    )
    padding: int = Field(4, ge=0, description="pixels of black border that `pad` crops from")
    roll: int = Field(5, ge=0, description="most pixels that `roll` moves frames round, up or down and left or right")
    scale: tuple[float, float] = Field((0.08, 1.0), description="share of the area that `random_resized` keeps")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="aspect ratios that `random_resized` draws from")
    flip: bool = Field(True, description="mirror left and right with probability one half")
    policy: Literal["none", "autoaugment_cifar10", "randaugment"] = Field(
        "none", description="operations on the cropped image: AutoAugment's for CIFAR-10, or RandAugment's"
    )
    randaugment: RandAugmentConfig = RandAugmentConfig()
    cutout: int = Field(0, ge=0, description="side in pixels of a square in the mean colour; 0: off")
    mix: MixConfig = MixConfig()

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, got {list(self.ratio)}")
        return self


class ProgressiveConfig(_Section):
    """Training at a resolution that grows to data.resolution; evaluation is always at that one."""

    start: int | None = Field(None, ge=1, description="pixels a side at first; none: data.resolution always")
    from_epoch: int = Field(0, ge=0, description="last epoch at `start`; the first epoch is 0")
    to_epoch: int = Field(1, ge=1, description="first epoch at data.resolution")
    multiple: int = Field(32, ge=1, description="resolutions between the two are multiples of this many pixels")

    @model_validator(mode="after")
    def _epochs_are_ordered(self) -> ProgressiveConfig:
        if self.from_epoch >= self.to_epoch:
            raise ValueError(f"from_epoch must be before to_epoch, got {self.from_epoch} and {self.to_epoch}")
        return self


class DataConfig(_Section):
    """Which images, at which size, in which batches."""

    dataset: str = Field(description="name that the data's manifest must carry")
    uri: str | None = Field(None, description="folder made by `agmm data build`; default <home>/data/<dataset>")
    resolution: int = Field(224, ge=1, description="pixels a side that the network sees")
    crop_ratio: float = Field(1.0, gt=0, le=1, description="share of the short side that evaluation keeps")
    batch_size: int = Field(128, ge=1, description="images in a global batch, whatever the number of workers")
    loader: Literal["auto", "ffcv", "torch"] = Field("auto", description="auto: FFCV where it is installed")
    threads: int = Field(1, ge=1, description="of each worker: FFCV's or torch's (processes), and augmenting")
    mean: _Means = Field((0.485, 0.456, 0.406), description="channel means, of 0..1")
    std: _Deviations = Field((0.229, 0.224, 0.225), description="channel deviations, of 0..1")
    augment: AugmentConfig = AugmentConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()

    @model_validator(mode="after")
    def _progressive_is_possible(self) -> DataConfig:
        start = self.progressive.start
        if start is None:
            return self
        if start > self.resolution:
            raise ValueError(f"progressive.start must be at most resolution, got {start} and {self.resolution}")
        if self.augment.crop == "pad":
            raise ValueError(
                "progressive.start does not go with augment.crop=pad, which copies pixels and resizes nothing; "
                "use crop=random_resized, or unset progressive.start"
            )
        return self

    def resolution_in(self, epoch: int) -> int:
        """Pixels a side of training images in an epoch: a straight line, rounded, as in FFCV's ImageNet recipe."""
        ramp = self.progressive
        if ramp.start is None or epoch >= ramp.to_epoch:
            return self.resolution
        done = max(0, epoch - ramp.from_epoch) / (ramp.to_epoch - ramp.from_epoch)
        rounded = round((ramp.start + done * (self.resolution - ramp.start)) / ramp.multiple) * ramp.multiple
        return min(max(rounded, ramp.start), self.resolution)


class NeuronConfig(_Section):
    """Integrate-and-fire, Eq. 1-4 and 7."""

    kind: Literal["lif", "if", "plif", "relu", "rate_if"] = Field(
        "lif", description="leaky; without leak; leak learned; relu: to convert later; rate_if: what convert makes"
    )
    leak: float = Field(0.5, ge=0, le=1, description="share of the membrane kept from step to step (tau)")
    threshold: float = Field(1.0, gt=0, description="membrane value that fires (V_th)")
    surrogate_width: float = Field(1.0, gt=0, description="half width of the triangular surrogate (gamma)")
    detach_reset: bool = Field(False, description="stop the gradient through the reset")
    reset: Literal["hard", "soft"] = Field("hard", description="after a spike: to zero, or by the threshold")


class GateConfig(_Section):
    """The AGMM gate, Eq. 11-16, and the controls that tell what it does."""

    kind: Literal["agmm", "constant", "forward_only", "backward_only", "none"] = Field(
        "agmm", description="the method's gate, or a control that tells what the gate does"
    )
    scope: Literal["sample", "channel"] = Field("sample", description="what one gate value covers")


class ModelConfig(_Section):
    """The network."""

    arch: str = Field("agmm_resnet18", description="name in timm's registry")
    num_classes: int = Field(1000, ge=2, description="must be what the data has")
    width: int | None = Field(
        None, ge=1, le=4096, description="channels of the first stage; default the published network's"
    )
    stem: Literal["imagenet", "cifar"] | None = Field(None, description="7x7/2 and max-pool, or 3x3/1")
    time_steps: int = Field(4, ge=1, le=1024, description="T")
    in_chans: int = Field(3, ge=1, le=64, description="channels of the input: 3 of images, 2 of event frames")
    method: Literal["agmm", "vanilla", "full_precision", "q_snn", "recu", "xnor", "xnor_learned"] = Field(
        "agmm", description="what weights act as, and whether the gate follows; all but full_precision are 1-bit"
    )
    norm: Literal["bn", "tebn"] = Field("bn", description="tebn: a trainable factor per time step on BN's output")
    neuron: NeuronConfig = NeuronConfig()
    gate: GateConfig = GateConfig()


class DistillConfig(_Section):
    """A teacher whose softened logits are part of the loss."""

    teacher: str | None = Field(None, description="name of any network in timm's registry; none: no distillation")
    pretrained: bool = Field(False, description="take timm's published weights, from the network")
    weights: str | None = Field(None, description="path of the teacher's weights, a .safetensors file")
    options: dict[str, str | int | float | bool] = Field({}, description="arguments that make the teacher, as width")
    share: float = Field(0.5, gt=0, le=1, description="share of the loss that is the teacher's")
    temperature: float = Field(2.0, gt=0, description="that both logits are divided by")

    @model_validator(mode="after")
    def _a_teacher_has_learnt(self) -> DistillConfig:
        if self.teacher and self.pretrained == bool(self.weights):
            raise ValueError("a teacher needs either pretrained=true or the path of its weights")
        if self.weights and not self.weights.endswith(".safetensors"):
            raise ValueError(f"weights must be a .safetensors file, got {self.weights}: other formats can run code")
        return self


class LossConfig(_Section):
    """What is added to the mean cross-entropy of the time steps."""

    tet: float = Field(0.0, ge=0, lt=1, description="share of TET's regulariser MSE(logits, 1)")
    distill: DistillConfig = DistillConfig()


class OptimConfig(_Section):
    """How weights are trained."""

    optimizer: Literal["sgd", "bop"] = Field("sgd", description="bop: binary weights flip, and have no latent ones")
    bop_adaptivity: float = Field(1e-4, gt=0, le=1, description="of Bop, how fast its momentum follows; falls with lr")
    bop_threshold: float = Field(1e-8, ge=0, description="of Bop, the momentum beyond which a weight flips")
    lr: float = Field(0.1, gt=0, description="at the peak")
    momentum: float = Field(0.9, ge=0, lt=1, description="of stochastic gradient descent")
    weight_decay: float = Field(1e-4, ge=0, description="of convolution and linear weights only")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="cosine: to 0 at the end")
    warmup: float = Field(0.0, ge=0, description="epochs of linear warm-up")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread over all classes")
    epochs: int = Field(300, ge=1, description="passes over the training images")
    max_steps: int | None = Field(None, ge=1, description="end after so many steps, the schedule included")


class ExecutionConfig(_Section):
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
        "none: only the epoch's flips",
    )
    log_every: int = Field(20, ge=1, description="steps between progress lines and training metrics")


class CheckpointConfig(_Section):
    """When a checkpoint is committed, and where."""

    uri: str | None = Field(None, description="folder or s3://bucket/prefix; default <store>/checkpoints")
    every: int | None = Field(None, ge=1, description="steps; besides the end of each epoch")
    keep: int = Field(2, ge=1, description="committed checkpoints kept of a run")


class TrackingConfig(_Section):
    """MLflow."""

    uri: str | None = Field(None, description="default MLFLOW_TRACKING_URI, else SQLite in <home>")
    experiment: str = Field("agmm", min_length=1, description="name in MLflow")
    register_as: str | None = Field(
        None, pattern=_NAME, description="registered model's name; none: the model is only logged"
    )


class RunConfig(_Section):
    """A whole run."""

    name: str = Field(pattern=_NAME, description="letters, digits, dots, dashes, underscores; names the run")
    seed: int = Field(0, ge=0, lt=2**32, description="of weights, order and augmentation")
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: ExecutionConfig = ExecutionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _every_worker_has_an_image(self) -> RunConfig:
        if self.data.batch_size < self.run.workers:
            raise ValueError(
                f"data.batch_size is the global batch and must be at least run.workers: "
                f"{self.data.batch_size} images for {self.run.workers} workers. Raise one or lower the other."
            )
        return self

    @model_validator(mode="after")
    def _the_neuron_can_be_trained(self) -> RunConfig:
        if self.model.neuron.kind == "rate_if":
            raise ValueError("model.neuron.kind=rate_if is what `agmm convert` makes. Train relu, and convert it.")
        if self.model.neuron.kind == "relu" and self.model.time_steps != 1:
            raise ValueError("model.neuron.kind=relu knows no time. Set model.time_steps=1.")
        return self

    def total_steps(self, train_images: int) -> int:
        """Optimiser steps of the whole run, on so many training images."""
        steps = self.optim.epochs * (train_images // self.data.batch_size)
        return min(steps, self.optim.max_steps or steps)


# Fields that say where a run executes, not what it computes: a resume may change them.
FREE_ON_RESUME = frozenset({"run", "checkpoint", "tracking", "data.uri", "data.loader", "data.threads"})
# ... but these parts of `run` change the numbers.
FIXED_IN_RUN = frozenset({"run.precision", "run.deterministic"})


def parse_config(tree: Mapping[str, Any], *, origin: str) -> RunConfig:
    """A plain mapping as a checked tree; `origin` names it in errors. Raises UserError."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(item)}" for item in error.errors())
        raise UserError(f"{origin} is not a valid run:\n{lines}") from error


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


def _explain(item: Mapping[str, Any]) -> str:
    """One pydantic error as: where, what is wrong, what came, what is allowed."""
    where = ".".join(str(part) for part in item["loc"]) or "the tree"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key. Known here: {', '.join(_section_of(item['loc']).model_fields)}."
    if item["type"] == "missing":
        return f"{where}: required, and missing."
    came = "" if isinstance(item["input"], Mapping | BaseModel) else f" Got {item['input']!r}."
    return f"{where}: {item['msg'].removeprefix('Value error, ').rstrip('.')}.{came}"


def _section_of(location: tuple[Any, ...]) -> type[BaseModel]:
    section: type[BaseModel] = RunConfig
    for part in location[:-1]:
        annotation = section.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return section
