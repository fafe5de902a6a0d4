"""VGGSNN for event cameras, in timm's registry.

Axes: T time steps, B batch, C channels, H, W, K classes.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from agmm.models.blocks import BatchNorm2d, BlockSpec, FeedForwardBlock, over_time
from agmm.models.network import SpikingNetwork, create, initialise

_POOL = 0
# Channels of the binary layers as multiples of the width.
_LAYERS = (2, _POOL, 4, 4, _POOL, 8, 8, _POOL, 8, 8, _POOL)
# A frame of 48 x 48 pixels leaves the four pools as a grid of 3 x 3, which the head sees place by place.
_GRID = 3


class VGGSNN(SpikingNetwork):
    """64-128-P-256-256-P-512-512-P-512-512-P-linear at width 64; each convolution with norm, gate and neuron.

    The first convolution and the head are full precision and have no gate. The head sees a grid of 3 x 3 places, which
    is what 48 x 48 pixels come to; other sizes are averaged to it.

    Args:
        width: channels of the first layer.
        stem: must be None: this network has no stem to choose.
        num_classes, in_chans: see `SpikingNetwork`.
        options: fields of `agmm.models.blocks.BlockSpec`.

    Raises:
        ValueError: for a stem, or what `SpikingResNet` refuses.

    """

    def __init__(
        self, width: int = 64, num_classes: int = 10, in_chans: int = 2, stem: str | None = None, **options: Any
    ) -> None:
        if stem is not None:
            raise ValueError(f"VGGSNN has no stem to choose; got {stem!r}. Leave out model.stem.")
        spec = BlockSpec(**options)
        super().__init__(num_classes, spec.num_steps, in_chans)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1, bias=False), BatchNorm2d(width))
        self.neuron = spec.make_neuron()
        self.layers = nn.Sequential(*_make_layers(width, spec))
        self.head = self._make_head(_LAYERS[-2] * width * _GRID**2, num_classes)
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images or frames to the pooled spikes of the last layer, `[T, B, C, H, W]`."""
        return self.layers(self.neuron(self.over_steps(self.stem, x)))

    def pool(self, x_TBCHW: Tensor) -> Tensor:
        """Spikes by channel and place of the grid, `[T, B, num_features]`."""
        if x_TBCHW.shape[3:] != (_GRID, _GRID):  # this pool has no deterministic gradient on CUDA
            x_TBCHW = over_time(lambda x: F.adaptive_avg_pool2d(x, _GRID), x_TBCHW)
        return x_TBCHW.flatten(2)


class _HalfSize(nn.Module):
    """Average pool of 2 at every step; a border too narrow for it is averaged over what is there."""

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        return over_time(lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False), x_TBCHW)


def _make_layers(width: int, spec: BlockSpec) -> list[nn.Module]:
    layers, channels = list[nn.Module](), width
    for multiple in _LAYERS:
        if multiple == _POOL:
            layers.append(_HalfSize())
        else:
            layers.append(FeedForwardBlock(channels, multiple * width, spec))
            channels = multiple * width
    return layers


default_cfgs = generate_default_cfgs(
    {
        "agmm_vggsnn": {
            "num_classes": 10,
            "input_size": (2, 48, 48),
            "mean": (0.0, 0.0),
            "std": (1.0, 1.0),
            "first_conv": "stem.0",
            "classifier": "head",
        }
    }
)


@register_model
def agmm_vggsnn(pretrained: bool = False, **kwargs: Any) -> SpikingNetwork:
    """VGGSNN for event frames of 48 x 48 pixels and two polarities, width 64."""
    return create(VGGSNN, "agmm_vggsnn", pretrained, {"width": 64}, kwargs)
