"""One training step and one evaluation: pure torch, no service. Axes: T time steps, B batch, K classes."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from agmm.finite import BufferCopy, all_finite, blame_gradients, blame_loss
from agmm.losses import Criterion, mean_step_cross_entropy

_CROSS_ENTROPY = Criterion()


class NotFinite(ArithmeticError):
    """The loss or a gradient is NaN or infinite. Raised before the weights are touched.

    Args:
        everywhere: whether all ranks raise it, as they do of gradients that DDP has averaged.
        own: whether it comes from this rank's images.

    """

    def __init__(self, text: str, *, everywhere: bool = False, own: bool = True) -> None:
        super().__init__(text)
        self.everywhere, self.own = everywhere, own


def _unheard(_: str) -> None:
    """Nobody asks for the phases."""


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast for `bf16`, nothing for `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    target: Tensor,
    *,
    precision: str = "fp32",
    criterion: Criterion = _CROSS_ENTROPY,
    loss_weight: float = 1.0,
    on_phase: Callable[[str], None] = _unheard,
) -> dict[str, float]:
    """Forward, backward, update.

    Args:
        images: normalised images `[B, C, H, W]` or frames `[T, B, C, H, W]`, on the model's device.
        target: classes [B], or shares of the classes [B, K] for mixed images.
        criterion: the loss.
        loss_weight: multiplies the loss for the gradient only; ranks with unequal slices of a global batch weigh
            theirs by `len(slice) * world / len(batch)`, so that averaged gradients are those of the whole batch.
        on_phase: called with `forward`, `backward` and `update` as each begins, and under DDP with `exchange` before
            the last, when this rank's gradients are computed: it waits for the other ranks', and the look at them ends
            it. What DDP sends beside the backward pass costs no time of its own, and is in `backward`.

    Returns:
        `loss` (mean over the batch) and `correct` (images whose mean logits are right: name the largest share's class).

    Raises:
        NotFinite: before the update, when the loss or a gradient is NaN or infinite; it says where it was first.
            Weights, buffers and the optimiser's state are as before the call.

    """
    batch = _Batch(images, target, precision, criterion, loss_weight)
    optimizer.zero_grad(set_to_none=True)
    before = BufferCopy(model)
    try:
        return _update(model, optimizer, batch, on_phase)
    except NotFinite:
        before.restore()
        raise


@dataclass(frozen=True)
class _Batch:
    """A batch, and how its loss is taken."""

    images: Tensor
    target: Tensor
    precision: str
    criterion: Criterion
    weight: float

    @property
    def context(self) -> AbstractContextManager[object]:
        return precision_context(self.images.device, self.precision)

    def loss(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The loss and the logits `[T, B, K]`."""
        with self.context:
            logits_TBK = model(self.images)
        return self.criterion(logits_TBK, self.target, self.images), logits_TBK


def _update(model: nn.Module, optimizer: Optimizer, batch: _Batch, on_phase: Callable[[str], None]) -> dict[str, float]:
    on_phase("forward")
    loss, logits_TBK = batch.loss(model)
    value = loss.item()
    if not math.isfinite(value):
        raise NotFinite(f"the loss is {value}: {blame_loss(_unwrapped(model), batch.images, batch.context)}")
    on_phase("backward")
    _backward(loss * batch.weight, model, on_phase)
    if not all_finite(p.grad for p in model.parameters() if p.grad is not None):
        raise _bad_gradients(model, batch)
    on_phase("update")
    optimizer.step()
    classes_B = batch.target if batch.target.ndim == 1 else batch.target.argmax(dim=1)
    return {"loss": value, "correct": float(_correct(logits_TBK, classes_B, 1))}


def _backward(loss: Tensor, model: nn.Module, on_phase: Callable[[str], None]) -> None:
    """The gradients; of a DDP model averaged over ranks. What is queued first is called first, before DDP waits."""
    if isinstance(model, DistributedDataParallel):
        queue = Variable._execution_engine.queue_callback
        loss.register_hook(lambda _: queue(lambda: on_phase("exchange")))
    loss.backward()


def _bad_gradients(model: nn.Module, batch: _Batch) -> NotFinite:
    """DDP has averaged the gradients, so that all ranks see one rank's NaN: each looks whether it gave it."""
    network = _unwrapped(model)
    text = f"the gradients are not finite: {blame_gradients(network)}"
    if network is model:
        return NotFinite(text)
    loss, _ = batch.loss(network)
    # unlike `backward`, this does not start DDP's collectives
    own = torch.autograd.grad(loss * batch.weight, _trained(network), allow_unused=True)
    return NotFinite(text, everywhere=True, own=not all_finite(g for g in own if g is not None))


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, precision: str = "fp32"
) -> dict[str, float]:
    """Sums over batches of `(images, target_B)`: `count`, `loss`, `top1`, `top5`, each a sum over images.

    Sums, not means, so that ranks with unequal shares add up exactly. The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    sums = {"count": 0.0, "loss": 0.0, "top1": 0.0, "top5": 0.0}
    for images, target_B in batches:
        with precision_context(images.device, precision):
            logits_TBK = model(images)
        sums["count"] += len(target_B)
        sums["loss"] += mean_step_cross_entropy(logits_TBK, target_B).item() * len(target_B)
        sums["top1"] += _correct(logits_TBK, target_B, 1)
        sums["top5"] += _correct(logits_TBK, target_B, 5)
    model.train(was_training)
    return sums


def means(sums: dict[str, float]) -> dict[str, float]:
    """The sums of `evaluate` as means over images; `count` stays."""
    return {key: value if key == "count" else value / max(1.0, sums["count"]) for key, value in sums.items()}


def _correct(logits_TBK: Tensor, target_B: Tensor, k: int) -> int:
    ranked_Bk = logits_TBK.mean(0).topk(min(k, logits_TBK.shape[-1])).indices
    return int((ranked_Bk == target_B[:, None]).any(dim=1).sum())
