"""The driver's end of a run's journal: what it says is on disk at once, and in MLflow as soon as MLflow takes it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.home import home
from pipelines.progress import Say
from pipelines.tracking.spool import Spool, close_of

_SAY_EVERY_S = 10.0
_LOOK_EVERY_S = 0.05
_START_AGAIN_S = 5.0  # after a scribe that has died, at the earliest
_LEAVE_S = 10.0  # for a scribe that has nothing left to do


class Journal:
    """What a run tells MLflow. No method but `flush` and `close` waits for MLflow; any thread may call them.

    Args:
        run_id: the run, which MLflow has already.
        session: the id of this stay of a driver at the run, which is its `agmm.session` tag.
        uri: where MLflow is.
        say: tells the person who watches.

    """

    def __init__(self, run_id: str, session: str, uri: str, say: Say) -> None:
        self._session, self._uri, self._say = session, uri, say
        self._spool = Spool(run_id)
        self._lock = threading.Lock()
        self._lost = 0  # lines that the disk did not take
        self._over = False
        self._scribe = _ScribeProcess(self._spool, session, uri, say)
        self._scribe.start()
        self._append({"open": session, "uri": uri})

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log a row of metrics at an optimiser step."""
        metrics = {key: float(value) for key, value in row.items()}
        self._append({"metrics": metrics, "step": step, "time": int(time.time() * 1000)})

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._append({"tag": key, "value": value})

    def flush(self, timeout_s: float) -> bool:
        """Wait until MLflow has everything that was logged so far; returns whether it has."""
        goal, started = self._spool.size(), time.monotonic()
        said = started
        while self._spool.mark().offset < goal <= self._spool.size():  # the scribe may remove what has ended
            now = time.monotonic()
            if now - started > timeout_s:
                return False
            self._scribe.watch()
            if now - said > _SAY_EVERY_S:
                said = now
                self._say(f"waiting for MLflow at {self._uri}: {len(self._spool.waiting())} rows buffered")
            time.sleep(_LOOK_EVERY_S)
        return True

    def close(self, status: str, cause: str = "", *, wait_s: float) -> bool:
        """End the run as FINISHED, KILLED or FAILED; returns whether MLflow knows. The scribe goes on where not yet."""
        return self._end(close_of(self._session, status, cause), wait_s)

    def abandon(self, *, wait_s: float) -> bool:
        """End the session and leave the run's state to a newer one; returns whether MLflow has all that was logged."""
        return self._end({"abandon": self._session}, wait_s)

    def _end(self, operation: Mapping[str, Any], wait_s: float) -> bool:
        kept = self._append(operation)
        self._over = True
        self._scribe.let_go(b"" if kept else json.dumps(operation).encode())
        if not self.flush(wait_s):
            self._scribe.leave()
            self._say(
                f"MLflow at {self._uri} has not taken everything of run {self._spool.run_id} yet. A process in the "
                f"background goes on for an hour ({self._spool.log}); after that: `agmm runs reap`."
            )
            return False
        if self._scribe.has_left(_LEAVE_S):
            self._spool.remove()
        self._scribe.leave()
        return True

    def _append(self, operation: Mapping[str, Any]) -> bool:
        """Keep a line; returns whether it is kept."""
        if self._over:
            return False
        kept = False
        try:
            with self._lock:
                self._spool.append(operation)
            kept = True
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                self._say(
                    f"What is logged cannot be kept, and the run goes on without: {error}. Make room on that disk."
                )
        self._scribe.watch()
        return kept


class _ScribeProcess:
    """The scribe of a session: started, started again if it dies, and told that the driver has ended."""

    def __init__(self, spool: Spool, session: str, uri: str, say: Say) -> None:
        self._spool, self._words, self._say = spool, [spool.run_id, session, uri], say
        self._link: socket.socket | None = None  # its standard input; either end sees the other one go
        self._starter: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._last_words: bytes | None = None  # None: the driver goes on
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it. A failure is said: what is logged waits on disk."""
        self._started_at = time.monotonic()
        mine, its = socket.socketpair()
        try:
            with self._spool.log.open("ab") as log, its:
                command = [sys.executable, "-P", "-m", "pipelines.tracking.scribe", *self._words]
                self._starter = subprocess.Popen(
                    command, stdin=its.fileno(), stdout=log, stderr=log, env=_environment(), start_new_session=True
                )
        except OSError as error:
            mine.close()
            self._say(f"The process that sends metrics to MLflow cannot be started yet: {error}")
            return
        mine.setblocking(False)
        self._link = mine
        if self._last_words is not None:
            _end_writing(mine, self._last_words)

    def watch(self) -> None:
        """Start it again where it has died."""
        with self._lock:
            if self._alive() or time.monotonic() - self._started_at < _START_AGAIN_S:
                return
            self._drop()
            self._say(f"the process that sends metrics to MLflow has ended, another is started; see {self._spool.log}")
            self.start()

    def let_go(self, last_words: bytes) -> None:
        """Tell it that nothing more comes, and what could not be put on disk."""
        with self._lock:
            self._last_words = last_words
            if self._link is not None:
                _end_writing(self._link, last_words)

    def has_left(self, timeout_s: float) -> bool:
        """Wait for it to end by itself; returns whether it has."""
        deadline = time.monotonic() + timeout_s
        while self._alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def leave(self) -> None:
        """Leave it to itself."""
        with self._lock:
            self._drop()

    def _alive(self) -> bool:
        if self._link is None:
            return False
        try:
            return self._link.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._starter is not None:
            self._starter.wait()  # it ended when the scribe was on its own


def _end_writing(link: socket.socket, last_words: bytes) -> None:
    with suppress(OSError):  # the other end has gone before
        link.sendall(last_words)
        link.shutdown(socket.SHUT_WR)


def _environment() -> dict[str, str]:
    """This process's, so that the scribe finds this very package and home, wherever they were found."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"AGMM_HOME": str(home()), "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
