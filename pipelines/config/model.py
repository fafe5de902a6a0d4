"""The network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.section import Section


class NeuronConfig(Section):
    """Integrate-and-fire, Eq. 1-4 and 7."""

    kind: Literal["lif", "if", "plif", "relu", "rate_if"] = Field(
        "lif", description="leaky; without leak; leak learned; relu: to convert later; rate_if: what convert makes"
    )
    leak: float = Field(0.5, ge=0, le=1, description="share of the membrane kept from step to step (tau)")
    threshold: float = Field(1.0, gt=0, description="membrane value that fires (V_th)")
    surrogate_width: float = Field(1.0, gt=0, description="half width of the triangular surrogate (gamma)")
    detach_reset: bool = Field(False, description="stop the gradient through the reset")
    reset: Literal["hard", "soft"] = Field("hard", description="after a spike: to zero, or by the threshold")


class GateConfig(Section):
    """The AGMM gate, Eq. 11-16, and the controls that tell what it does."""

    kind: Literal["agmm", "constant", "forward_only", "backward_only", "none"] = Field(
        "agmm", description="the method's gate, or a control that tells what the gate does"
    )
    scope: Literal["sample", "channel"] = Field("sample", description="what one gate value covers")


class ModelConfig(Section):
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

    @model_validator(mode="after")
    def _the_gate_is_agmms(self) -> ModelConfig:
        if self.method != "agmm" and self.gate != GateConfig():
            raise ValueError(
                f"gate belongs to method agmm; {self.method} has none, and would train as if it were not there. "
                "Leave model.gate out, or set model.method=agmm (with model.gate.kind=none it is vanilla)"
            )
        return self
