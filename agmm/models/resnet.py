"""Double-skip binary spiking ResNets, in timm's registry.

Axes: T time steps, B batch, C channels, H, W, K classes. The stem runs once on the static image, the blocks over T.
"""

from collections.abc import Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from agmm.models.blocks import BatchNorm2d, BlockSpec, SpikingBlock

STEMS = ("imagenet", "cifar")


class SpikingResNet(nn.Module):
    """Stem, stages of single-convolution blocks, global average pool, linear head.

    No neuron follows the stem or the last block.

    Args:
        depths: blocks of each stage; the first block of every stage but the first halves the resolution.
        num_classes: K.
        num_steps: T, at training and evaluation alike.
        in_chans: channels of the image.
        width: channels of the first stage; each later stage doubles them.
        stem: `imagenet`: 7x7 stride 2, then 3x3 stride 2 max-pool; `cifar`: 3x3 stride 1.
        method, gate_kind, gate_scope: see `agmm.methods` and `agmm.modulation`.
        leak, threshold, surrogate_width, detach_reset: see `agmm.neuron.LIF`.

    Raises:
        ValueError: for an unknown stem, method, gate kind or scope, or a neuron parameter out of range.

    """

    def __init__(
        self,
        depths: Sequence[int],
        width: int,
        stem: str,
        num_classes: int = 1000,
        num_steps: int = 4,
        in_chans: int = 3,
        method: str = "agmm",
        gate_kind: str = "agmm",
        gate_scope: str = "sample",
        leak: float = 0.5,
        threshold: float = 1.0,
        surrogate_width: float = 1.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_steps, self.in_chans = num_classes, num_steps, in_chans
        spec = BlockSpec(num_steps, method, gate_kind, gate_scope, leak, threshold, surrogate_width, detach_reset)
        self.stem = _make_stem(stem, in_chans, width)
        self.stages = nn.Sequential(*_make_stages(depths, width, spec))
        self.num_features = self.head_hidden_size = width * 2 ** (len(depths) - 1)
        self.head = _make_head(self.num_features, num_classes)
        _initialise(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Images to logits of every step, `[T, B, K]`; their mean over T is the prediction."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Images to the real-valued stream after the last block, `[T, B, C, H, W]`."""
        stream_BCHW = self.stem(x_BCHW)
        return self.stages(stream_BCHW.expand(self.num_steps, *stream_BCHW.shape))

    def forward_head(self, x_TBCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features `[T, B, C]`, or their logits `[T, B, K]`, in float32."""
        pooled = x_TBCHW.mean(dim=(3, 4))
        return pooled if pre_logits else self.head(pooled).float()

    def get_classifier(self) -> nn.Module:
        """The linear head, as timm names it."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a fresh one; 0 classes leaves the features."""
        self.num_classes = num_classes
        self.head = _make_head(self.num_features, num_classes).to(next(self.parameters()).device)


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


def _make_head(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> SpikingResNet:
    # None means "the published network's own", so that a configuration need not know it
    chosen = defaults | {key: value for key, value in kwargs.items() if value is not None}
    return build_model_with_cfg(SpikingResNet, variant, pretrained, **chosen)


def _cfg(size: int, num_classes: int) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "input_size": (3, size, size),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs({"agmm_resnet18": _cfg(224, 1000), "agmm_resnet19": _cfg(32, 10)})


@register_model
def agmm_resnet18(pretrained: bool = False, **kwargs: Any) -> SpikingResNet:
    """ResNet-18 for ImageNet: 64/128/256/512 channels, [4, 4, 4, 4] single-convolution blocks."""
    return _create("agmm_resnet18", pretrained, {"depths": (4, 4, 4, 4), "width": 64, "stem": "imagenet"}, kwargs)


@register_model
def agmm_resnet19(pretrained: bool = False, **kwargs: Any) -> SpikingResNet:
    """ResNet-19 for CIFAR: stem 128, then 128/256/512 channels, [6, 6, 4] single-convolution blocks."""
    return _create("agmm_resnet19", pretrained, {"depths": (6, 6, 4), "width": 128, "stem": "cifar"}, kwargs)
