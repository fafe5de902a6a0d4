"""What is summed over training steps, and where their time went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from pipelines.loop.world import World

# of the pulse; `validate` is all that an epoch's end takes but storing, `other` whatever else comes between two steps
PHASES = ("load", "forward", "backward", "exchange", "update", "commit", "validate", "other")


@dataclass
class Window:
    """Sums over the steps since the last report; it may span epochs.

    Seconds are of `Pulse.lap`: each belongs to one phase, and `seconds` are training's, without the epochs' ends.
    """

    loss: float = 0.0
    correct: float = 0.0
    images: float = 0.0
    steps: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0
    spent: list[float] = field(default_factory=lambda: [0.0] * len(PHASES), kw_only=True)  # by phase

    def add(self, result: Mapping[str, float], images: int, flops: float = 0.0) -> None:
        """Count a step."""
        self.loss += result["loss"] * images
        self.correct += result["correct"]
        self.images += images
        self.steps += 1
        self.flops += flops

    def train(self, lap: Mapping[str, float]) -> None:
        """Count a lap of training."""
        for name, seconds in lap.items():
            self.spent[PHASES.index(name if name in PHASES else "other")] += seconds
        self.seconds += sum(lap.values())

    def between(self, lap: Mapping[str, float]) -> None:
        """Count a lap between two epochs: validation, and a checkpoint."""
        for name, seconds in lap.items():
            self.spent[PHASES.index("commit" if name == "commit" else "validate")] += seconds

    def over(self, world: World) -> Window:
        """The sums over all ranks, on all of them; `steps` and seconds too, so that ratios of them are means."""
        return _window(world.sum(_sums(self)))

    def __add__(self, other: Window) -> Window:
        return _window([mine + its for mine, its in zip(_sums(self), _sums(other), strict=True)])

    def times(self) -> dict[str, float]:
        """Seconds a step by phase, as `time/<phase>`; nothing without steps."""
        if not self.steps:
            return {}
        return {f"time/{name}": seconds / self.steps for name, seconds in zip(PHASES, self.spent, strict=True)}


def _sums(window: Window) -> list[float]:
    *sums, spent = astuple(window)
    return [*sums, *spent]


def _window(sums: list[float]) -> Window:
    split = len(sums) - len(PHASES)
    return Window(*sums[:split], spent=sums[split:])
