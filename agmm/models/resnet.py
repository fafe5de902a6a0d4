"""Double-skip binary spiking ResNets, in timm's registry.

Axes: T time steps, B batch, C channels, H, W, K classes. The stem runs once on a static image, the blocks over T.
"""

from collections.abc import Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from agmm.models.blocks import BatchNorm2d, BlockSpec, SpikingBlock
from agmm.models.network import SpikingNetwork, create, initialise

STEMS = ("imagenet", "cifar")


class SpikingResNet(SpikingNetwork):
    """Stem, stages of single-convolution blocks, global average pool, linear head.

    No neuron follows the stem or the last block.

    Args:
        depths: blocks of each stage; the first block of every stage but the first halves the resolution.
        width: channels of the first stage; each later stage doubles them.
        stem: `imagenet`: 7x7 stride 2, then 3x3 stride 2 max-pool; `cifar`: 3x3 stride 1.
        num_classes, in_chans: see `SpikingNetwork`.
        options: fields of `agmm.models.blocks.BlockSpec`.

    Raises:
        ValueError: for an unknown stem, method, norm, neuron, gate kind or scope, or a neuron parameter out of range.

    """

    def __init__(
        self,
        depths: Sequence[int],
        width: int,
        stem: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        **options: Any,
    ) -> None:
        spec = BlockSpec(**options)
        super().__init__(num_classes, spec.num_steps, in_chans)
        self.stem = _make_stem(stem, in_chans, width)
        self.stages = nn.Sequential(*_make_stages(depths, width, spec))
        self.head = self._make_head(width * 2 ** (len(depths) - 1), num_classes)
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images or frames to the real-valued stream after the last block, `[T, B, C, H, W]`."""
        return self.stages(self.over_steps(self.stem, x))


def _make_stem(stem: str, in_chans: int, width: int) -> nn.Sequential:
    if stem not in STEMS:
        raise ValueError(f"Unknown stem {stem!r}. Known: {', '.join(STEMS)}. Set model.stem.")
    if stem == "cifar":
        return nn.Sequential(nn.Conv2d(in_chans, width, 3, 1, 1, bias=False), BatchNorm2d(width))
    conv = nn.Conv2d(in_chans, width, 7, 2, 3, bias=False)
    return nn.Sequential(conv, BatchNorm2d(width), nn.MaxPool2d(3, 2, 1))


def _make_stages(depths: Sequence[int], width: int, spec: BlockSpec) -> list[nn.Sequential]:
    stages, channels = [], width
    for stage, depth in enumerate(depths):
        out, stride = width * 2**stage, 1 if stage == 0 else 2
        blocks = [SpikingBlock(channels if i == 0 else out, out, stride if i == 0 else 1, spec) for i in range(depth)]
        stages.append(nn.Sequential(*blocks))
        channels = out
    return stages


def _cfg(size: int, num_classes: int) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {"agmm_resnet18": _cfg(224, 1000), "agmm_resnet19": _cfg(32, 10), "agmm_resnet34": _cfg(224, 1000)}
)


@register_model
def agmm_resnet18(pretrained: bool = False, **kwargs: Any) -> SpikingNetwork:
    """ResNet-18 for ImageNet: 64/128/256/512 channels, [4, 4, 4, 4] single-convolution blocks."""
    defaults = {"depths": (4, 4, 4, 4), "width": 64, "stem": "imagenet"}
    return create(SpikingResNet, "agmm_resnet18", pretrained, defaults, kwargs)


@register_model
def agmm_resnet19(pretrained: bool = False, **kwargs: Any) -> SpikingNetwork:
    """ResNet-19 for CIFAR: stem 128, then 128/256/512 channels, [6, 6, 4] single-convolution blocks."""
    defaults = {"depths": (6, 6, 4), "width": 128, "stem": "cifar"}
    return create(SpikingResNet, "agmm_resnet19", pretrained, defaults, kwargs)


@register_model
def agmm_resnet34(pretrained: bool = False, **kwargs: Any) -> SpikingNetwork:
    """ResNet-34 for ImageNet: 64/128/256/512 channels, [6, 8, 12, 6] single-convolution blocks."""
    defaults = {"depths": (6, 8, 12, 6), "width": 64, "stem": "imagenet"}
    return create(SpikingResNet, "agmm_resnet34", pretrained, defaults, kwargs)
