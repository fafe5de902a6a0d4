"""What all networks share: an input of images or of frames, a linear head on every step, timm's contract.

Axes: T time steps, B batch, C channels, H, W, K classes.
"""

from typing import Any

from timm.models import build_model_with_cfg
from torch import Tensor, nn

from agmm.models.blocks import TemporalBatchNorm2d, over_time
from agmm.modulation import AGMM
from agmm.precision import at_least_float32
from agmm.related import LearnedScaleConv2d

_PER_STEP = {AGMM: "a gate with an alpha per step", TemporalBatchNorm2d: "a norm with a factor per step (tebn)"}


class SpikingNetwork(nn.Module):
    """A network over `num_steps` time steps; subclasses give `forward_features` and `pool`, and call `_make_head`.

    Args:
        num_classes: K.
        num_steps: T; `set_num_steps` changes it where no parameter belongs to a time step.
        in_chans: channels of the input, 3 of an image, 2 of event frames.

    """

    num_features: int
    head_hidden_size: int
    head: nn.Module

    def __init__(self, num_classes: int, num_steps: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes, self.num_steps, self.in_chans = num_classes, num_steps, in_chans

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, C, H, W]` or frames `[T, B, C, H, W]` to logits of every step, `[T, B, K]`.

        Their mean over T is the prediction. Raises ValueError for frames of another T or an input of other channels.
        """
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images or frames to the last feature maps of every step, `[T, B, C, H, W]`."""
        raise NotImplementedError

    def pool(self, x_TBCHW: Tensor) -> Tensor:
        """Feature maps to what the head sees, `[T, B, num_features]`; here the mean over H and W."""
        return x_TBCHW.mean(dim=(3, 4))

    def forward_head(self, x_TBCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features `[T, B, num_features]`, or their logits `[T, B, K]`, at least float32."""
        pooled = self.pool(x_TBCHW)
        if pre_logits:
            return pooled
        return at_least_float32(self.head(pooled))

    def over_steps(self, encode: nn.Module, x: Tensor) -> Tensor:
        """The first layers of the input at every step, `[T, B, C, H, W]`; of a static image they run once."""
        if x.ndim not in (4, 5) or x.shape[-3] != self.in_chans:
            raise ValueError(
                f"The network takes images [B, {self.in_chans}, H, W] or frames [T, B, {self.in_chans}, H, W]; "
                f"got {list(x.shape)}. Check model.in_chans and the data."
            )
        if x.ndim == 4:
            encoded_BCHW = encode(x)
            return encoded_BCHW.expand(self.num_steps, *encoded_BCHW.shape)
        if x.shape[0] != self.num_steps:
            raise ValueError(
                f"The network has {self.num_steps} time steps and the frames {x.shape[0]}. "
                "Set model.time_steps, or build the data with as many frames."
            )
        return over_time(encode, x)

    def step_parameters(self) -> list[str]:
        """What this network has one of per time step, in words; nothing for one that runs over any T."""
        return [words for kind, words in _PER_STEP.items() if any(isinstance(m, kind) for m in self.modules())]

    def set_num_steps(self, num_steps: int) -> None:
        """Run over another T from now on. Raises ValueError where parameters belong to the steps of training."""
        bound = self.step_parameters()
        if num_steps != self.num_steps and bound:
            raise ValueError(
                f"The network was trained for {self.num_steps} time steps and cannot run over {num_steps}: "
                f"it has {' and '.join(bound)}. Train one with model.time_steps={num_steps}."
            )
        self.num_steps = num_steps

    def get_classifier(self) -> nn.Module:
        """The linear head, as timm names it."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one; 0 classes leaves the features. The pooling stays as it is."""
        if global_pool is not None:
            raise ValueError(f"The pooling of this network cannot be changed; got global_pool={global_pool!r}.")
        self.num_classes = num_classes
        device = next(self.parameters()).device
        self.head = self._make_head(self.num_features, num_classes).to(device)

    def _make_head(self, features: int, num_classes: int) -> nn.Module:
        self.num_features = self.head_hidden_size = features
        return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


def initialise(model: nn.Module) -> None:
    """He initialisation of every convolution, and scales that fit."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, LearnedScaleConv2d):
            module.reset_scale()


def create(
    network: type[SpikingNetwork], variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]
) -> SpikingNetwork:
    """A network through timm's builder. An argument that is None is the published network's own."""
    chosen = defaults | {key: value for key, value in kwargs.items() if value is not None}
    return build_model_with_cfg(network, variant, pretrained, **chosen)
