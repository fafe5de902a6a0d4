"""What the hooks share that remember what they have not sent yet: when they send all of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

Averaged = torch.futures.Future[Tensor]


class Bucket(Protocol):
    """Gradients that DDP exchanges together: what a hook is given of `torch.distributed.GradBucket`.

    `buffer` is all of them, flat; `gradients` are views on it, of the shape and order of axes of `parameters`.
    """

    def index(self) -> int: ...
    def buffer(self) -> Tensor: ...
    def gradients(self) -> list[Tensor]: ...
    def parameters(self) -> list[Tensor]: ...
    def is_last(self) -> bool: ...


class Exchange(ABC):
    """How ranks come to one gradient with fewer bytes, each with a residual of its own: what it has not sent yet.

    In a whole step gradients and residuals travel as bfloat16, and nothing is left over: what the rounding takes away
    is forgotten, as it is where all steps are of bfloat16. After it a run can be stopped, stored, and gone on with by
    any number of ranks as if it had never stopped, provided that which steps are whole is a function of the step alone.

    Collectives are waited for within the hook, so that all ranks begin them in the same order.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._whole = True

    @property
    def settled(self) -> bool:
        """Whether no rank has anything left that it has not sent."""
        return self._whole

    def begin(self, step: int, *, whole: bool) -> None:
        """The exchange of optimiser step `step` is about to come; called on all ranks with the same values."""
        del step
        self._whole = whole

    def average(self, bucket: Bucket) -> Averaged:
        """The bucket's gradients averaged over ranks, in its own buffer."""
        if not self._whole:
            return self._compressed(bucket)
        self._add_residuals(bucket)
        return bf16_compress_hook(self.group, bucket)

    def register(self, model: DistributedDataParallel, on_phase: Callable[[str], None] = lambda _: None) -> None:
        """Have the model exchange its gradients in this way; `on_phase` is told `exchange`, and `backward` after it."""

        def average(exchange, bucket):  # type: ignore[no-untyped-def]  # DDP would have an annotation be its own class
            on_phase("exchange")
            averaged = exchange.average(bucket)
            on_phase("backward")
            return averaged

        model.register_comm_hook(self, average)

    @abstractmethod
    def _compressed(self, bucket: Bucket) -> Averaged:
        """Average with few bytes, and remember what was not sent."""

    @abstractmethod
    def _add_residuals(self, bucket: Bucket) -> None:
        """Add what was not sent to the bucket's gradients, and forget it."""


def rows(gradient: Tensor) -> Tensor:
    """A gradient as a matrix of one row per output channel, a view on the same memory.

    `[O, ...]` to `[O, L]`, contiguous or channels last; the order within a row is that of the memory. A scalar is
    `[1, 1]`.
    """
    count = gradient.shape[0] if gradient.ndim else 1
    length = gradient.numel() // max(1, count)
    return gradient.as_strided((count, length), (length, 1))


def completed(value: Tensor) -> Averaged:
    """A future that has come."""
    future: Averaged = torch.futures.Future(devices=[value.device] if value.is_cuda else None)
    future.set_result(value)
    return future
