"""Several processes that work together over gloo on this machine, a core each where there are enough."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipelines.benchmarks.namespaces import INTERFACE, Node
from pipelines.errors import ServiceError

_ANSWER = "answer"
_LOOK_EVERY_S = 0.2


def together(work: str, job: dict[str, Any], ranks: int, scratch: Path, nodes: Sequence[Node] = ()) -> list[Any]:
    """Have each of so many ranks call `work`, a `module:function`, on the job; returns what each answers.

    Args:
        work: takes the job, and answers something for JSON; a process group is there.
        job: something for JSON.
        scratch: an empty folder for the ranks to meet in.
        nodes: where each rank is, and talks to the others from; by default all are on this machine's loopback.

    Raises ServiceError where a rank fails, with what it said last.

    """
    (scratch / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "pipelines.benchmarks.ranks", work, str(scratch), str(ranks)]
    environment = {"GLOO_SOCKET_IFNAME": "lo"} | os.environ | ({"GLOO_SOCKET_IFNAME": INTERFACE} if nodes else {})
    with ExitStack() as ends:
        processes = []
        for rank in range(ranks):
            said = ends.enter_context((scratch / f"said-{rank}").open("w"))
            words = [*command, str(rank)]
            words = nodes[rank].command(*words) if nodes else words
            processes.append(subprocess.Popen(words, stderr=said, env=environment))
            ends.callback(processes[-1].wait)
            ends.callback(processes[-1].kill)
        _wait(processes, scratch)
    return [json.loads((scratch / f"{_ANSWER}-{rank}").read_text()) for rank in range(ranks)]


def _wait(processes: list[subprocess.Popen[bytes]], scratch: Path) -> None:
    """Until all have ended, or one has failed: others might wait for it for long."""
    while running := [process for process in processes if process.poll() is None]:
        if any(process.returncode for process in processes):
            break
        time.sleep(_LOOK_EVERY_S)
    for rank, process in enumerate(processes):
        if process not in running and process.returncode:
            said = (scratch / f"said-{rank}").read_text()[-2000:]
            raise ServiceError(
                f"Rank {rank} of {len(processes)} ended with {process.returncode}. It said last:\n{said}"
            )


def _be_one(work: str, scratch: Path, ranks: int, rank: int) -> None:
    import torch
    import torch.distributed as dist

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{scratch / 'meeting'}", rank=rank, world_size=ranks)
    module, _, name = work.partition(":")
    answer = getattr(importlib.import_module(module), name)(json.loads((scratch / "job.json").read_text()))
    (scratch / f"{_ANSWER}-{rank}").write_text(json.dumps(answer))
    dist.barrier()  # a rank that left first would abort those that still talk to it
    dist.destroy_process_group()


if __name__ == "__main__":
    _be_one(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
