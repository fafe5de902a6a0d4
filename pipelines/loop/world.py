"""What surrounds the loop of a run: the other processes of it, and everything beyond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from pipelines.loop.pulse import Pulse
from pipelines.storage import Store


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all ranks."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def share(self, text: str) -> str:
        """Rank 0's text, on all ranks."""
        if self.size == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, 0, device=self.device)
        return texts[0]


@dataclass(frozen=True)
class Outside:
    """Everything beyond the loop: where checkpoints go, and who is told what."""

    store: Store
    log: Callable[[dict[str, float], int], None]
    progress: Callable[[dict[str, Any]], None]
    on_epoch: Callable[[dict[str, float]], None]  # called on every rank, the others on rank 0 only
    _: KW_ONLY
    commits_epochs: bool = False  # whether each epoch is told of only when it is committed, not the last one alone
    session: str = ""  # names the driver that the workers belong to
    tag: Callable[[str, str], None] = lambda _key, _value: None  # tells the run something by name, from any thread
    pulse: Pulse = field(default_factory=Pulse)  # marked by every rank
    stop_requested: Callable[[], bool] = lambda: False  # looked at after each step: to save and stop, rank 0 only
    saved: Callable[[str], None] = lambda _: None  # told the checkpoint saved on request; ends the worker
    mark: Callable[[str], None] = lambda _: None  # told what has just been done, while the worker starts

    def say(self, line: str) -> None:
        """Show a line to whoever watches the run."""
        self.progress({"say": line})
