"""Several processes that work together over gloo on this machine, a core each where there are enough."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipelines.errors import ServiceError

_ANSWER = "answer"


def together(work: str, job: dict[str, Any], ranks: int, scratch: Path) -> list[Any]:
    """Have each of so many ranks call `work`, a `module:function`, on the job; returns what each answers.

    Args:
        work: takes the job, and answers something for JSON; a process group is there.
        job: something for JSON.
        scratch: an empty folder for the ranks to meet in.

    Raises ServiceError where a rank fails, with what it said last.

    """
    (scratch / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "pipelines.benchmarks.ranks", work, str(scratch), str(ranks)]
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ}
    processes = [
        subprocess.Popen([*command, str(rank)], stderr=(scratch / f"said-{rank}").open("w"), env=environment)
        for rank in range(ranks)
    ]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, code in enumerate(codes):
        if code:
            said = (scratch / f"said-{rank}").read_text()[-2000:]
            raise ServiceError(f"Rank {rank} of {ranks} ended with code {code}. It said last:\n{said}")
    return [json.loads((scratch / f"{_ANSWER}-{rank}").read_text()) for rank in range(ranks)]


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
