"""What the backward pass computes again in place of what the forward pass would have kept.

A replay gives the bits that were there before, and leaves no trace: running statistics are not updated twice, autocast
is as it was, and what is watched by hooks, which would see it twice, is kept and not replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from agmm.kernels.compiled import watched

MODES = ("fast", "balanced", "least")


class Lazy:
    """A tensor that is computed when it is first asked for, and kept until as many users as it has are done with it."""

    def __init__(self, compute: Callable[[], Tensor], users: int = 1) -> None:
        self._compute, self._users = compute, users
        self._value: Tensor | None = None
        self._left = users

    @classmethod
    def of(cls, value: Tensor) -> Lazy:
        """One that is there."""
        return cls(lambda: value)

    def __call__(self) -> Tensor:
        if self._value is None:
            with torch.no_grad():
                self._value = self._compute()
        return self._value

    def done(self) -> None:
        """A user has had it for the last time."""
        self._left -= 1
        if self._left <= 0:
            self.drop()

    def drop(self) -> None:
        """Compute it anew where somebody asks again."""
        self._value, self._left = None, self._users


def replayed(function: Callable[..., Any], *inputs: Any, modules: Iterator[nn.Module] | list[nn.Module]) -> Any:
    """`function(*inputs)`, of which autograd keeps the inputs only; `modules` are those that it calls."""
    called = list(modules)
    if not torch.is_grad_enabled() or any(map(watched, called)):
        return function(*inputs)
    first = [True]

    def run(*inputs: Any) -> Any:
        with nullcontext() if first and first.pop() else forgetting(called):
            return function(*inputs)

    return checkpoint(run, *inputs, use_reentrant=False)


def again(function: Callable[[], Tensor], modules: Iterator[nn.Module] | list[nn.Module]) -> Callable[[], Tensor]:
    """`function` as a replay of what it gives now: in the autocast of now."""
    called, cast = list(modules), autocast_of_now()

    def run() -> Tensor:
        with cast(), forgetting(called):
            return function()

    return run


@contextmanager
def forgetting(modules: list[nn.Module]) -> Iterator[None]:
    """Buffers, such as running statistics, are copies until it ends: the true ones are not touched."""
    before = [(module, dict(module._buffers)) for module in modules]
    for module, buffers in before:
        module._buffers.update({name: None if each is None else each.clone() for name, each in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in before:
            module._buffers.update(buffers)


def autocast_of_now() -> Callable[[], AbstractContextManager[Any]]:
    """What enters the autocast of now again."""
    enabled, kind = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return lambda: torch.autocast("cpu", kind, enabled=enabled)


class ReplayedStem(nn.Sequential):
    """The layers before the blocks, of which nothing is kept.

    `taken` is how to compute the last result again, once; None where it was kept.
    """

    _last: Callable[[], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        modules = list(self.modules())
        if not torch.is_grad_enabled() or any(map(watched, modules)):
            return super().forward(x)
        self._last = again(partial(super().forward, x), modules)
        return replayed(super().forward, x, modules=modules)

    def taken(self) -> Callable[[], Tensor] | None:
        """How to compute the last result again; the next call has nothing."""
        last, self._last = self._last, None
        return last


class ReplayedSequential(nn.Sequential):
    """Of its modules, so many at a time, only the inputs are kept."""

    at_once = 1

    def forward(self, x: Tensor) -> Tensor:
        children = list(self)
        for begin in range(0, len(children), self.at_once):
            part = nn.Sequential(*children[begin : begin + self.at_once])
            x = replayed(part, x, modules=list(part.modules()))
        return x
