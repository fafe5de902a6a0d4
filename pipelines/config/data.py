"""Which images or recordings, at which size, in which batches, and what training does to them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.section import NAME, Positive, Section, Share

_Means = tuple[Share, Share, Share]
_Deviations = tuple[Positive, Positive, Positive]


class RandAugmentConfig(Section):
    """RandAugment, as torchvision has it."""

    num_ops: int = Field(2, ge=1, le=16, description="operations an image goes through")
    magnitude: int = Field(9, ge=0, le=30, description="strength of each, the same for all")


class MixConfig(Section):
    """Mixup and CutMix of neighbours in the epoch's order; each worker's share of a batch must be even."""

    mixup: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha), from which Mixup draws shares; 0: off")
    cutmix: float = Field(0.0, ge=0, description="alpha of Beta(alpha, alpha), from which CutMix draws shares; 0: off")
    probability: Share = Field(1.0, description="share of the pairs that are mixed")
    switch_probability: Share = Field(0.5, description="share of CutMix among mixed pairs where both are on")

    @property
    def enabled(self) -> bool:
        """Whether any pair may be mixed."""
        return self.probability > 0 and max(self.mixup, self.cutmix) > 0


class AugmentConfig(Section):
    """What training does, in this order, to an image or alike to all frames of a recording.

    Every draw is a function of (seed, epoch, sample id). Event frames take crop, padding, roll and flip only.
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


class ProgressiveConfig(Section):
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


class DataConfig(Section):
    """Which images, at which size, in which batches."""

    dataset: str = Field(pattern=NAME, description="name that the data's manifest must carry")
    uri: str | None = Field(
        None, description="built data set: a folder, or s3://bucket/prefix to stage; default <home>/data/<dataset>"
    )
    share: float = Field(1.0, gt=0, le=1, description="of the training images; which ones is a function of the seed")
    resolution: int = Field(224, ge=1, description="pixels a side that the network sees")
    crop_ratio: float = Field(1.0, gt=0, le=1, description="share of the short side that evaluation keeps")
    batch_size: int = Field(128, ge=1, description="images in a global batch, whatever the number of workers")
    loader: Literal["auto", "ffcv", "torch"] = Field("auto", description="auto: FFCV where it is installed")
    decode: Literal["scaled", "full"] = Field(
        "scaled", description="JPEG images: no larger than their crop needs, at 1/2, 1/4 or 1/8; or always whole"
    )
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

    def kept(self, train_images: int) -> int:
        """Training images that a run sees, of so many in the data set."""
        return round(self.share * train_images)

    def resolution_in(self, epoch: int) -> int:
        """Pixels a side of training images in an epoch: a straight line, rounded, as in FFCV's ImageNet recipe."""
        ramp = self.progressive
        if ramp.start is None or epoch >= ramp.to_epoch:
            return self.resolution
        done = max(0, epoch - ramp.from_epoch) / (ramp.to_epoch - ramp.from_epoch)
        rounded = round((ramp.start + done * (self.resolution - ramp.start)) / ramp.multiple) * ramp.multiple
        return min(max(rounded, ramp.start), self.resolution)
