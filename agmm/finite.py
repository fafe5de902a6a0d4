"""Whether the numbers of a training step are finite, and where the first one comes from that is not."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no element is NaN or infinite. Waits for the device once."""
    tensors = list(tensors)
    # a norm is one fast pass; it may overflow where the numbers do not, so only a finite one is the last word
    if math.isfinite(nn.utils.get_total_norm(tensors).item()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


class BufferCopy:
    """The buffers of a network, such as running statistics, as they are when it is made."""

    def __init__(self, network: nn.Module) -> None:
        self._copies = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the values that they had."""
        for buffer, copy in self._copies:
            buffer.copy_(copy)


def blame_loss(network: nn.Module, images: Tensor, context: AbstractContextManager[object]) -> str:
    """Where a loss that is not finite comes from, in words; changes buffers only.

    Weights and images are looked at first, then the forward pass is run once more, eagerly and without autograd, inside
    `context`, and each layer's output is looked at in the order of computation.

    Args:
        network: as built, not as DDP wraps it: other ranks do not take part.
        images: the batch that gave the loss.

    """
    for name, parameter in network.named_parameters():
        if not all_finite([parameter]):
            return f"parameter {name} is not finite"
    if not all_finite([images]):
        return "the input images are not finite"
    try:
        layer = _first_layer(network, images, context)
    except RuntimeError as error:  # out of memory, say: the loss is still what has to be told
        return f"the layer is unknown, since the batch could not be run again ({error})"
    if layer is None:
        return "in the loss itself, all layers' outputs are finite when run again"
    return f"first in layer {layer} (output)"


def blame_gradients(network: nn.Module) -> str:
    """Which parameter's gradient is not finite, in words: the first that the backward pass came to."""
    gradients = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
    bad = [name for name, gradient in gradients if not all_finite([gradient])]
    return f"first in {bad[-1]} on the way back, in {len(bad)} of {len(gradients)} parameters"


@torch.no_grad()
def _first_layer(network: nn.Module, images: Tensor, context: AbstractContextManager[object]) -> str | None:
    bad: list[str] = []
    hooks = [
        module.register_forward_hook(partial(_watch, bad, name or "the network"))
        for name, module in network.named_modules()
    ]
    try:
        with context, _eager():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return bad[0] if bad else None


def _watch(bad: list[str], name: str, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
    if not bad and isinstance(output, Tensor) and not all_finite([output]):
        bad.append(name)


def _eager() -> AbstractContextManager[object]:
    """Compiled code does not see hooks that come after its compilation."""
    stance: Callable[[str], AbstractContextManager[object]] = torch.compiler.set_stance
    return stance("force_eager")
