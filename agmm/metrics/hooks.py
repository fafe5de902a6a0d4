"""Hooks that exist only while something is measured."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

Hook = Callable[[int, Any, tuple[Any, ...], Tensor], None]  # number of the layer, layer, inputs, output


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Hook) -> Iterator[None]:
    """Call `hook` after every forward pass of every layer while the context lasts; no hook before or after."""
    handles = [layer.register_forward_hook(partial(hook, number)) for number, layer in enumerate(layers.values())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
