"""The process beside the driver that sends a run's journal to MLflow.

`python -m pipelines.tracking.scribe RUN SESSION ADDRESS`.

It outlives the driver: its standard input ends with it, and then the scribe sends what is left and closes the run if
the driver could not. MLflow being slow, locked or away costs nobody but this process any time.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from datetime import UTC, datetime
from typing import Any

from filelock import Timeout

from pipelines.errors import ServiceError, UserError
from pipelines.secrets import redacted
from pipelines.tracking.claim import claimed, lock_of
from pipelines.tracking.sender import Sender
from pipelines.tracking.spool import Spool, close_of

PATIENCE = "AGMM_SCRIBE_PATIENCE_S"  # how long to go on without a driver, seconds
_PATIENCE_S = 3600.0
_LOOK_EVERY_S = 0.5
_LONGEST_PAUSE_S = 10.0  # between two attempts while MLflow does not take anything
_BEAT_EVERY_S = 30.0
_NICE = 5
LOST = "DriverLost: the driver process ended without saying how (killed, out of memory, or its machine failed)"


class _Link:
    """The driver, as this process sees it: standard input, which ends with it."""

    def __init__(self) -> None:
        self.lost_at = 0.0  # monotonic; 0: it lives
        self._words = b""

    def wait(self, seconds: float) -> None:
        """Wait, or until the driver ends."""
        if self.lost_at:
            time.sleep(seconds)
        elif select.select([0], [], [], seconds)[0]:
            words = os.read(0, 1 << 16)
            self._words += words
            self.lost_at = 0.0 if words else time.monotonic()

    def last_words(self) -> dict[str, Any] | None:
        """The end of the session as the driver told it here, because its disk did not take it."""
        try:
            return dict(json.loads(self._words))
        except ValueError:
            return None

    def patience_is_over(self) -> bool:
        """Whether nobody has been waiting for long."""
        most = float(os.environ.get(PATIENCE, _PATIENCE_S))
        return bool(self.lost_at) and time.monotonic() - self.lost_at > most


class Scribe:
    """One session of a run, as it is told to MLflow."""

    def __init__(self, run_id: str, session: str, uri: str) -> None:
        self._spool, self._session, self._link = Spool(run_id), session, _Link()
        self._sender = Sender(self._spool, uri, _say)
        self._beaten_at = -_BEAT_EVERY_S
        self._failures = 0

    def serve(self) -> None:
        """Send until the session has ended and everything is sent, or for as long as there is patience."""
        while not self._link.patience_is_over():
            try:
                if self._round():
                    return
                self._failures = 0
            except ServiceError as error:
                self._failures, self._beaten_at = self._failures + 1, -_BEAT_EVERY_S
                _say(f"MLflow does not take it now: {error}")
                if self._link.lost_at and self._is_followed():
                    return
            self._link.wait(min(_LOOK_EVERY_S * 2 ** min(self._failures, 10), _LONGEST_PAUSE_S))
        _say("MLflow was away for too long: `agmm runs reap` sends the rest")

    def _round(self) -> bool:
        """Send all that waits; returns whether this scribe is done."""
        if not self._link.lost_at:
            self._beat()
        while self._sender.send(only=self._session):
            pass
        if self._sender.overtaken:
            return True
        if not self._link.lost_at:
            return False
        if self._sender.session != self._session:  # another one follows, or the disk did not take the opening
            self._tell(self._link.last_words())
        elif not self._sender.ended:
            return self._close_for_the_driver()
        self._clean()
        return True

    def _beat(self) -> None:
        """Now and then, and first after an outage: who took the run over or closed it did so meanwhile."""
        if time.monotonic() - self._beaten_at >= _BEAT_EVERY_S and not self._has_ended():
            self._sender.beat(self._session)
            self._beaten_at = time.monotonic()

    def _has_ended(self) -> bool:
        """Whether MLflow knows the session's end: such a run is not to be set to RUNNING."""
        return self._sender.ended and self._sender.session == self._session

    def _close_for_the_driver(self) -> bool:
        close = self._link.last_words() or close_of(self._session, "FAILED", LOST)
        try:
            self._spool.append(close)
        except OSError:  # a full disk may be what ended the driver
            self._tell(close)
            return True
        return False

    def _tell(self, end: dict[str, Any] | None) -> None:
        """Close the run past the journal, where that is what the session ended with."""
        if end and "close" in end:
            self._sender.close(end)

    def _is_followed(self) -> bool:
        """Whether another session's scribe waits for this one to end; it may know a way to MLflow."""
        opened = [entry.operation["open"] for entry in self._spool.waiting() if "open" in entry.operation]
        return bool(opened) and opened[-1] != self._session

    def _clean(self) -> None:
        """Remove what was sent, unless a driver has come meanwhile."""
        try:
            with claimed(self._spool.run_id, wait_s=0):
                if self._spool.mark().offset == self._spool.size():
                    self._spool.remove()
        except UserError:
            return


def _say(line: str) -> None:
    """Into the log beside the journal: standard error is that file."""
    sys.stderr.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {redacted(line)}\n")
    sys.stderr.flush()


def main(run_id: str, session: str, uri: str) -> None:
    """Serve one session, as the only scribe of its run, in a process that is nobody's child.

    A job that is stopped takes its children with it; the scribe has yet to say what became of the run.
    """
    if os.fork():
        os._exit(0)
    os.nice(_NICE)
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # the scribe tries again by itself
    try:
        with lock_of(f"{run_id}.scribe").acquire(timeout=float(os.environ.get(PATIENCE, _PATIENCE_S))):
            Scribe(run_id, session, uri).serve()
    except Timeout:
        _say("another scribe has been at it for too long")


if __name__ == "__main__":
    main(*sys.argv[1:])
