"""What a training run measures besides its loss, as `run.measure` says: rows of metrics for every epoch.

Sums are added over ranks before they are divided, so every rank calls `Measures.row`, and all get the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from agmm.metrics.cost import count_parameters
from agmm.metrics.energy import energy_mj
from agmm.metrics.firing import FiringMeter, firing_rates, total_firing_rate
from agmm.metrics.flips import FlipCounter, latent_weights, log_flip_ratio
from agmm.metrics.gradients import GradientMeter, gradient_statistics, weight_gradient_statistics
from agmm.metrics.operations import OperationMeter, totals
from pipelines.config import RunConfig

Rows = dict[str, float]


class Measures:
    """The measures of one process's network, from epoch to epoch. Of them a checkpoint holds the flips.

    Args:
        network: as built, not as DDP wraps it.
        sum_over_ranks: adds up a list of numbers over the `ranks` of the run, on all of them.

    A compiled network does not see hooks that come later, so of it neither firing, nor operations, nor the gradients
    that reach layers are measured.

    """

    def __init__(
        self, network: nn.Module, config: RunConfig, sum_over_ranks: Callable[[list[float]], list[float]], ranks: int
    ) -> None:
        self._network, self._steps = network, config.model.time_steps
        self._sum, self._ranks = sum_over_ranks, ranks
        self._each_epoch = config.run.measure != "none"
        self._hooks = self._each_epoch and not config.run.compile
        self._operations_in = "none" if config.run.compile else config.run.operations
        self._size_mb = count_parameters(network).megabytes
        self._flips = FlipCounter(network) if config.run.measure == "step" else None
        self._gradients: GradientMeter | None = None
        self._firing: FiringMeter | None = None
        self._operations: OperationMeter | None = None
        self._weight_gradients: dict[str, dict[str, float]] = {}

    def restart(self, flips: Mapping[str, int]) -> None:
        """The network has other weights now: count flips from these, on top of the counts of a checkpoint."""
        if self._flips:
            self._flips.restart(flips)

    def flips(self) -> dict[str, int]:
        """Flips from step to step in this epoch so far, for a checkpoint; empty where they are not counted."""
        return self._flips.counts() if self._flips else {}

    @contextmanager
    def step(self, *, ends_epoch: bool) -> Iterator[None]:
        """Around a training step. Gradients are those of an epoch's last step, flips those of every one."""
        with self._gradient_hooks() if ends_epoch else nullcontext():
            yield
        if self._flips:
            self._flips.update()
        if ends_epoch and self._each_epoch:
            self._weight_gradients = weight_gradient_statistics(self._network)

    @contextmanager
    def validation(self, *, is_last: bool = False) -> Iterator[None]:
        """Around a validation, whose images show how often neurons fire and how many operations they take."""
        with ExitStack() as hooks:
            if self._hooks:
                self._firing = FiringMeter(self._network, self._steps)
                hooks.enter_context(self._firing.measuring())
            if self._operations_in == "epoch" or (self._operations_in == "last" and is_last):
                self._operations = OperationMeter(self._network)
                hooks.enter_context(self._operations.measuring())
            yield

    def costs(self, images: float) -> Rows:
        """What an inference costs, a mean over all ranks' `images` of the last validation.

        Returns:
            `size_mb`, and where operations were counted `sops`, `macs` and `energy_mj/<convention>`.

        """
        row = {"size_mb": self._size_mb}
        if not self._operations:
            return row
        sums = totals(self._operations.per_image(images, self._summed(self._operations.counts_L4)))
        energies = {f"energy_mj/{name}": value for name, value in energy_mj(**sums).items()}
        return row | {"sops": sums["sops"], "macs": sums["macs"]} | energies

    def row(self, epoch_flips: Mapping[str, float]) -> Rows:
        """All measures of the epoch that ends, given its flip ratios (Eq. 8); flips per step start again at zero."""
        row = {f"flips/{name}": ratio for name, ratio in epoch_flips.items()}
        if not self._each_epoch:
            return row
        row |= {f"flips_log/{name}": log_flip_ratio(ratio) for name, ratio in epoch_flips.items()}
        row |= _keyed("weights/", latent_weights(self._network))
        row |= _keyed("gradients/weight_", self._weight_gradients)
        row |= self._flips_per_step() | self._firing_row() | self._gradient_row()
        return row

    def _gradient_hooks(self) -> AbstractContextManager[None]:
        if not self._hooks:
            return nullcontext()
        self._gradients = GradientMeter(self._network, self._steps)
        return self._gradients.measuring()

    def _flips_per_step(self) -> Rows:
        if not self._flips:
            return {}
        row = {f"flips_per_step/{name}": ratio for name, ratio in self._flips.ratio().items()}
        self._flips.restart()
        return row

    def _firing_row(self) -> Rows:
        if not self._firing or not self._firing.names:
            return {}
        counts_LT2 = self._summed(self._firing.counts_LT2)
        rates = firing_rates(self._firing.names, counts_LT2)
        return _by_step("firing", rates) | {"firing/total": total_firing_rate(counts_LT2)}

    def _gradient_row(self) -> Rows:
        if not self._gradients:
            return {}
        # a rank's loss weighs `ranks` times its share of the batch's (see `train_step`), since DDP averages
        scale = torch.tensor([1, 1 / self._ranks, 1 / self._ranks**2], dtype=torch.float64)
        moments_LT3 = self._summed(self._gradients.moments_LT3) * scale
        statistics = gradient_statistics(self._gradients.names, moments_LT3)
        return _by_step("gradients/mean", statistics["mean"]) | _by_step("gradients/variance", statistics["variance"])

    def _summed(self, sums: Tensor) -> Tensor:
        return torch.tensor(self._sum(sums.flatten().tolist()), dtype=torch.float64).view(sums.shape)


def _by_step(prefix: str, layers: Mapping[str, Iterable[float]]) -> Rows:
    return {f"{prefix}/{name}/t{t}": value for name, values in layers.items() for t, value in enumerate(values)}


def _keyed(prefix: str, kinds: Mapping[str, Mapping[str, float]]) -> Rows:
    return {f"{prefix}{kind}/{name}": value for kind, row in kinds.items() for name, value in row.items()}
