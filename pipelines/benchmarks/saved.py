"""What a forward pass keeps for the backward pass, by each `run.memory`, against plain torch and SpikingJelly.

Counted: what the C library has given out after a forward pass and had not before, whoever holds it. Timed: a training
step of each, in the same rounds.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agmm.kernels import check, fuse, native
from agmm.kernels.memory import keep_memory
from agmm.kernels.replay import MODES
from agmm.metrics.firing import FiringMeter
from pipelines.benchmarks import circumstances, row
from pipelines.benchmarks.peers import has_spikingjelly, versions
from pipelines.benchmarks.race import Contender, machine, paired, pinned, race
from pipelines.benchmarks.step import ARCH, BATCH, KINDS, SIDE, STEPS, make_network, make_step, with_spikingjelly
from pipelines.errors import UserError
from pipelines.progress import Progress

_UNIT = "bytes"
Change = Callable[[nn.Module], Any]


def bench(rounds: int, threads: int, *, side: int = SIDE, batch: int = BATCH, width: int = 64) -> dict[str, Any]:
    """Rows of each `run.memory` by each peer: bytes per neuron and time step, and images per second of a step.

    Raises UserError where there are no compiled passes, not so many cores, or another C library than glibc.
    """
    if not check.agrees():
        raise UserError(f"There are no fused kernels to measure: {native.why_not() or check.difference()}.")
    keep_memory()
    title = f"{ARCH}, width {width}, {side} px, T = {STEPS}, batch {batch}"
    kinds = [(f"{name}, {number}", precision, change) for number, precision in KINDS for name, change in _changes()]
    with pinned(threads), Progress(len(kinds) + rounds, "measure", "network or round") as progress:
        kept = {name: _kept(change, precision, side, batch, width, progress) for name, precision, change in kinds}
        racers = {
            name: Contender(name, make_step(make_network(width), side, batch, precision, change))
            for name, precision, change in kinds
        }
        race([*racers.values()], rounds, progress)
    pairs = [(mine, peer) for mine in kept if _is_ours(mine) for peer in kept if _is_compared(mine, peer)]
    rows = [
        row(f"{title}: {mine} by {peer}", kept[mine], _UNIT, kept[peer]) | {"spread": None} for mine, peer in pairs
    ] + [
        paired(f"{title}: a step of {mine} by {peer}", racers[mine], racers[peer], "images/s", batch, batch)
        for mine, peer in pairs
    ]
    return {"rows": rows, **circumstances(), "threads": threads, "rounds": rounds, **machine(), "peers": versions()}


def _is_ours(name: str) -> bool:
    return name.startswith("run.memory")


def _is_compared(mine: str, peer: str) -> bool:
    """Others in any precision; of ours, the fast one in the same."""
    number = mine.split(", ")[1]
    return not _is_ours(peer) or (peer == f"run.memory=fast, {number}" and peer != mine)


def _changes() -> Iterator[tuple[str, Change]]:
    for mode in MODES:
        yield f"run.memory={mode}", partial(fuse, memory=mode)
    yield "torch", lambda _: None
    if has_spikingjelly():
        yield "SpikingJelly", with_spikingjelly


def _kept(change: Change, precision: str, side: int, batch: int, width: int, progress: Progress) -> float:
    """Bytes per neuron and time step."""
    network = make_network(width)
    images = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    neurons = count_neurons(network, images)
    change(network)
    progress.advance()
    return saved_bytes(network, images, half=precision == "bf16") / neurons


def count_neurons(network: nn.Module, images: Tensor) -> int:
    """Neurons of all layers, samples and time steps."""
    meter = FiringMeter(network, STEPS)
    with torch.inference_mode(), meter.measuring():
        network(images)
    return int(meter.counts_LT2[..., 1].sum())


def saved_bytes(network: nn.Module, images: Tensor, *, half: bool) -> int:
    """What a forward pass leaves allocated for the backward pass, by anyone, beside the logits."""
    for kept in (False, True):  # the first time what is made once is made, such as a library's plans
        with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            warnings.simplefilter("ignore")  # the peer's own
            gc.collect()
            before = allocated()
            logits = network(images)
            gc.collect()
            found = allocated() - before - logits.nbytes
        if not kept:
            logits.sum().backward()
            network.zero_grad()
        del logits
    return found


class _Heap(ctypes.Structure):
    """mallinfo2 of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "free", "small", "maps", "mapped", "unused", "small_free", "used", "unused_now", "top")
    ]


def allocated() -> int:
    """Bytes that the process has from the C library now. Raises UserError where that cannot be asked."""
    if platform.libc_ver()[0] != "glibc":
        raise UserError("What is kept is counted by glibc's mallinfo2, which is not here.")
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Heap
    heap = ask()
    return int(heap.used + heap.mapped)
