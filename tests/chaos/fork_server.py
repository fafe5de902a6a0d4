"""Ranks of runs as forks of one process that has imported everything: its start takes longer than a run.

`python -m tests.chaos.fork_server` reads a JSON object a line and answers each with one. {"start": ARGUMENTS} forks a
child that calls `run_rank(**ARGUMENTS)`, with its output in a file; {"wait": PID} waits for its end. The server never
starts a thread, trains or loads itself, so that its forks are sound. What is killed is the child, by whoever wants.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path

_OWN = {"GLOO_SOCKET_IFNAME": "lo", "AGMM_FAULTS": ""}


def run_rank(recipe, log, rank=0, world=1, meeting="", faults=""):
    """One rank of a run; its progress goes to the file `log`, a line a step and what the run says."""
    import torch
    import torch.distributed as dist

    from pipelines import faults as points
    from pipelines.loop.worker import run
    from pipelines.loop.world import Outside, World
    from pipelines.recipe import load_recipe
    from pipelines.storage import open_store

    points._faults = points._parse(faults)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    config = load_recipe(recipe)

    def show(item):
        print(item["say"] if "say" in item else f"step {item['step']}", flush=True)

    outside = Outside(
        open_store(config.checkpoint.uri), lambda row, step: None, show, lambda metrics: None, session=log
    )
    metrics = run(config, World(rank, world, torch.device("cpu")), outside, Path(config.data.uri), "test")
    print("ended", json.dumps(metrics), flush=True)


def _serve():
    import torch

    from pipelines import recipe  # noqa: F401, they import all that a run needs
    from pipelines.data.loaders import why_absent
    from pipelines.loop.worker import run  # noqa: F401

    torch.set_num_threads(1)
    why_absent()  # imports FFCV
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = _fork(request["start"])
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        print(json.dumps(answer), flush=True)


def _fork(arguments):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _redirect(arguments["log"])
        run_rank(**arguments)
        code = 0
    except BaseException:  # noqa: BLE001, the child ends here, whatever it is
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # nothing that the server registered for its own end
    return 0


def _redirect(log):
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        target = os.devnull if stream == 0 else log
        handle = os.open(target, flags | (os.O_CREAT | os.O_APPEND if stream else 0))
        os.dup2(handle, stream)
        os.close(handle)


@dataclass
class Rank:
    """One process of a run."""

    server: ForkServer
    pid: int
    log: Path
    code: int | None = None

    @property
    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    @property
    def step(self):
        """The last step that it has told of."""
        return max(map(int, re.findall(r"^step (\d+)$", self.said, re.MULTILINE)), default=0)

    @property
    def resumed_at(self):
        """The step that it went on from, 0 where it began."""
        found = re.search(r"^resumed at step (\d+)", self.said, re.MULTILINE)
        return int(found[1]) if found else 0

    def wait_for_step(self, step, seconds=120.0):
        """Wait until it has told of the step, or has ended: a zombie answers to signals, but runs no more."""
        deadline = time.monotonic() + seconds
        while self.step < step and not self.has_ended():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def has_ended(self):
        """Whether it has ended, reaped or not."""
        return self.code is not None or Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def kill(self):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)  # it is not reaped yet, so the number is its own
        return self.wait()

    def wait(self):
        """Its exit code, -9 after SIGKILL."""
        if self.code is None:
            self.code = self.server.ask({"wait": self.pid})
        return self.code


class ForkServer:
    """The server as a process, and the ranks that it has started."""

    def __init__(self, folder):
        self.folder, self.ranks = folder, []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, **_OWN, "TMPDIR": str(folder), "AGMM_HOME": str(folder), "AGMM_CACHE": str(folder)},
        )

    def ask(self, request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, recipe, **arguments):
        """Start one rank; for the arguments see `run_rank`."""
        log = self.folder / f"{uuid.uuid4().hex}.log"
        rank = Rank(self, self.ask({"start": {"recipe": str(recipe), "log": str(log), **arguments}}), log)
        self.ranks.append(rank)
        return rank

    def close(self):
        for rank in self.ranks:
            rank.kill()
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


if __name__ == "__main__":
    _serve()
