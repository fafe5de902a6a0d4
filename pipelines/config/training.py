"""The loss and the optimiser."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.section import Section

_NOT_OPTIONS = frozenset({"checkpoint_path", "features_only", "num_classes", "pretrained", "pretrained_cfg"})


class DistillConfig(Section):
    """A teacher whose softened logits are part of the loss."""

    teacher: str | None = Field(None, description="name of any network in timm's registry; none: no distillation")
    pretrained: bool = Field(False, description="take timm's published weights, from the network")
    weights: str | None = Field(None, description="path of the teacher's weights, a .safetensors file")
    options: dict[str, str | int | float | bool] = Field({}, description="arguments that make the teacher, as width")
    share: float = Field(0.5, gt=0, le=1, description="share of the loss that is the teacher's")
    temperature: float = Field(2.0, gt=0, description="that both logits are divided by")

    @model_validator(mode="after")
    def _a_teacher_has_learnt(self) -> DistillConfig:
        if not self.teacher and self != DistillConfig.model_construct():
            raise ValueError("there is no teacher, so nothing would be distilled; set loss.distill.teacher")
        if self.teacher and self.pretrained == bool(self.weights):
            raise ValueError("a teacher needs either pretrained=true or the path of its weights")
        if reserved := _NOT_OPTIONS & self.options.keys():
            raise ValueError(f"options must not hold {', '.join(sorted(reserved))}: the recipe sets what they say")
        if self.weights and not self.weights.endswith(".safetensors"):
            raise ValueError(f"weights must be a .safetensors file, got {self.weights}: other formats can run code")
        return self


class LossConfig(Section):
    """What is added to the mean cross-entropy of the time steps."""

    tet: float = Field(0.0, ge=0, lt=1, description="share of TET's regulariser MSE(logits, 1)")
    distill: DistillConfig = DistillConfig()


class OptimConfig(Section):
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
