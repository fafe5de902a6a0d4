"""What a worker's loop carries: the plan, which does not change, and the state, which does and is checkpointed."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.optim import Optimizer

from agmm.exchange.exchange import Exchange
from agmm.losses import Criterion
from agmm.metrics.flips import pack_signs, unpack_signs
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.checkpoints.saver import Saver
from pipelines.config import RunConfig
from pipelines.data.loaders import BatchLoader
from pipelines.loop.measure import Measures
from pipelines.loop.profile import Profiler
from pipelines.loop.utilisation import Utilisation
from pipelines.loop.window import Window
from pipelines.loop.world import Outside, World


@dataclass(frozen=True)
class Plan:
    """The configuration, this process, the data, and how many steps there are."""

    config: RunConfig
    world: World
    outside: Outside
    train: BatchLoader
    val: BatchLoader
    code_version: str

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.total_steps(self.train.manifest.splits["train"].count)

    @property
    def is_main(self) -> bool:
        """Whether this rank logs and writes."""
        return self.world.rank == 0

    def is_over(self, position: Position) -> bool:
        """Whether all is trained and validated: a checkpoint saved on request may lie between the two."""
        return position.step == self.total and position.offset == 0


@dataclass
class State:
    """How far a run has come."""

    network: nn.Module
    model: nn.Module  # the network as DDP wraps it
    optimizer: Optimizer
    criterion: Criterion
    measures: Measures
    utilisation: Utilisation
    profiler: Profiler
    signs: dict[str, Tensor]  # as of the last validation
    exchange: Exchange | None = None  # of gradients, where it has residuals
    saver: Saver | None = None  # of the rank that writes
    is_due: bool = False  # a checkpoint, as soon as the saver is free
    position: Position = Position()
    metrics: dict[str, float] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    windows: int = 0  # reported by this process; the first holds the compilation of the loader
    whole: Window = field(default_factory=Window)  # all windows after it, over all ranks
    val_seconds: float = 0.0  # of the last validation

    def __post_init__(self) -> None:
        self.keep_signs(self.signs)

    @property
    def settled(self) -> bool:
        """Whether a checkpoint tells all: no rank has gradients left that it has not sent."""
        return self.exchange is None or self.exchange.settled

    def close(self) -> None:
        """End what works beside the loop."""
        self.profiler.close()
        if self.saver is not None:
            self.saver.close()

    def keep_signs(self, signs: dict[str, Tensor]) -> None:
        """Set the signs that the next flips are counted from; packed here, not at every checkpoint."""
        self.signs, self._packed = signs, pack_signs(signs)

    def snapshot(self, plan: Plan) -> Checkpoint:
        """The state as a checkpoint that refers to the live tensors."""
        return Checkpoint(
            position=self.position,
            model=dict(self.network.state_dict()),
            optimizer=checkpoints.optimizer_tensors(self.optimizer),
            signs=self._packed,
            config=plan.config.model_dump(mode="json"),
            metrics=self.metrics,
            flips=self.measures.flips(),
            code_version=plan.code_version,
        )

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.network.load_state_dict(found.model)
        checkpoints.restore_optimizer(self.optimizer, found.optimizer)
        self.measures.restart(found.flips)
        self.keep_signs(unpack_signs(found.signs, self.network))
        self.position, self.metrics = found.position, dict(found.metrics)
