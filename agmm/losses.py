"""Losses on the logits of every time step. Axes: T time steps, B batch, K classes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agmm.neuron import LIF


def mean_step_cross_entropy(logits_TBK: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over t and samples of the cross-entropy of each step's logits (TET with lambda = 0). A scalar.

    `target` holds classes [B] or, for mixed images, shares of the classes [B, K]; smoothing applies to either.
    """
    target_TB = target.expand(logits_TBK.shape[0], *target.shape)
    return F.cross_entropy(logits_TBK.flatten(0, 1), target_TB.flatten(0, 1), label_smoothing=label_smoothing)


def temporal_regulariser(logits_TBK: Tensor) -> Tensor:
    """MSE(o_t, 1), the second term of TET, which keeps single steps from outliers. A scalar.

    Deng et al. 2022 (arXiv 2202.11946), Eq. 12 and 13 with phi = 1.
    """
    return F.mse_loss(logits_TBK, torch.ones_like(logits_TBK))


def distillation(logits_TBK: Tensor, teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """temperature^2 * KL(teacher || student) of softened logits, mean over t and samples. A scalar.

    Hinton et al. 2015 (arXiv 1503.02531); each step's logits are taught, as each has its own cross-entropy.
    """
    student = F.log_softmax(logits_TBK.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_BK.float() / temperature, dim=-1).expand_as(student)
    return F.kl_div(student.flatten(0, 1), teacher.flatten(0, 1), reduction="batchmean", log_target=True) * (
        temperature**2
    )


class FiringPenalty:
    """weight * mean over neuron layers of (firing rate - 0.5)^2, the first and the last layer left out.

    The spike half of Q-SNN's dual regulation (Wei et al. 2024, arXiv 2406.13672). It watches the neurons of a network;
    `take` gives the penalty of the last forward pass, of this process's share of a batch as batch normalisation is.
    """

    def __init__(self, model: nn.Module, weight: float) -> None:
        neurons = [layer for layer in model.modules() if isinstance(layer, LIF)]
        inner = neurons[1:-1] or neurons
        self._weight, self._rates = weight, dict[int, Tensor]()
        for layer in inner:
            layer.register_forward_hook(self._watch)

    def _watch(self, layer: nn.Module, _: object, spikes: Tensor) -> None:
        if torch.is_grad_enabled():
            self._rates[id(layer)] = spikes.mean()

    def take(self) -> Tensor:
        """The penalty of the last forward pass, a scalar with its gradient."""
        rates = torch.stack(list(self._rates.values()))
        self._rates.clear()
        return self._weight * (rates - 0.5).square().mean()


@dataclass(frozen=True)
class Criterion:
    """The training loss: (1 - d) * ((1 - l) * cross-entropy + l * MSE(o_t, 1)) + d * distillation + penalty.

    Args:
        label_smoothing: of the cross-entropy.
        tet: l, the share of the temporal regulariser, 0 to 1.
        teacher: images to logits `[B, K]`, without gradient; None for no distillation.
        distill: d, the share of the distillation.
        temperature: of the distillation.
        penalty: adds a term of the network's own, such as `FiringPenalty.take`.

    """

    label_smoothing: float = 0.0
    tet: float = 0.0
    teacher: Callable[[Tensor], Tensor] | None = None
    distill: float = 0.0
    temperature: float = 1.0
    penalty: Callable[[], Tensor] | None = None

    def __call__(self, logits_TBK: Tensor, target: Tensor, images: Tensor) -> Tensor:
        """The loss of a batch, a scalar; `target` as in `mean_step_cross_entropy`, `images` what the network saw."""
        loss = mean_step_cross_entropy(logits_TBK, target, label_smoothing=self.label_smoothing)
        if self.tet:
            loss = (1 - self.tet) * loss + self.tet * temporal_regulariser(logits_TBK)
        if self.teacher is not None:
            taught = distillation(logits_TBK, self.teacher(images), temperature=self.temperature)
            loss = (1 - self.distill) * loss + self.distill * taught
        return loss if self.penalty is None else loss + self.penalty()
