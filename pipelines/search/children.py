"""What a search tells MLflow: a child run for each trial, written by one thread, so that MLflow never holds a trial."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.config import RunConfig
from pipelines.errors import ServiceError
from pipelines.progress import Say
from pipelines.tracking import runs as tracking
from pipelines.tracking.journal import Journal
from pipelines.tracking.process import new_session, process_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE_TAG = "agmm.trial.state"
_PARENT, _NUMBER = "mlflow.parentRunId", "agmm.trial"
_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "failed": "FAILED", "running": "KILLED", "drawn": "KILLED"}
_WAIT_S = 20.0  # at a run's end, for MLflow to learn of it
_AGAIN_S = 15.0  # after MLflow has refused a run, at the earliest


class Child:
    """One trial's run in MLflow: created, or opened again by its id, as soon as MLflow lets it."""

    def __init__(self, client: MlflowClient, config: RunConfig, tags: Mapping[str, str], run_id: str, say: Say) -> None:
        self.run_id, self.is_named = run_id, bool(run_id)  # whether the ledger has the id
        self._client, self._config, self._tags, self._say = client, config, dict(tags), say
        self._is_new, self._session = not run_id, new_session()
        self._journal: Journal | None = None
        self._waiting: deque[tuple[Mapping[str, float], int]] = deque()
        self._retry_at = 0.0

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Log a row at an optimiser step; without MLflow it waits for the run to be there."""
        self._waiting.append((row, step))
        self.opened()

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run; without MLflow it waits for the run to be there."""
        self._tags[key] = value
        if journal := self.opened():
            journal.tag(key, value)

    def close(self, state: str, cause: str) -> bool:
        """End the run as its trial ended; returns whether MLflow has the run."""
        journal = self.opened(at_once=True)
        if journal is None:
            return False
        journal.tag(STATE_TAG, state)
        if cause and _STATUS[state] == "FINISHED":
            journal.tag(tracking.CAUSE_TAG, cause)
        journal.close(_STATUS[state], cause if _STATUS[state] != "FINISHED" else "", wait_s=_WAIT_S)
        return True

    def opened(self, *, at_once: bool = False) -> Journal | None:
        """The run's journal, with all that was logged; None while MLflow does not take the run."""
        if self._journal is None and (at_once or time.monotonic() >= self._retry_at):
            try:
                self._journal = self._open()
            except ServiceError as error:
                self._retry_at = time.monotonic() + _AGAIN_S
                self._say(f"trial {self._tags[_NUMBER]} is not in MLflow yet: {error}")
        if self._journal is not None:
            while self._waiting:
                self._journal.log(*self._waiting.popleft())
        return self._journal

    def _open(self) -> Journal:
        """Each call goes on where the one before has failed."""
        tags = self._tags | {tracking.SESSION_TAG: self._session, STATE_TAG: "running"} | process_tags()
        uri = str(self._config.tracking.uri)
        with tracking.explained(uri):
            if not self._is_new:
                tracking.reopen_run(self._client, self.run_id, tags)
            else:
                self.run_id = self.run_id or tracking.create_run(self._client, self._config, tags)
                tracking.describe_run(self._client, self.run_id, self._config, {})
        return Journal(self.run_id, self._session, uri, self._say)


class Children:
    """The child runs of a search. Methods return at once; `written` is the thread that does what they ask."""

    def __init__(self, client: MlflowClient, parent_id: str, on_run: Callable[[int, str], None], say: Say) -> None:
        self._client, self._parent_id, self._on_run, self._say = client, parent_id, on_run, say
        self._children: dict[int, Child] = {}
        self._owed: dict[int, tuple[Child, str, str]] = {}  # ended, and MLflow did not take their runs: state, cause
        self._asked: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def open(self, number: int, config: RunConfig, values: Mapping[str, object], run_id: str = "") -> None:
        """A trial starts, or starts again: `run_id` is what it had before."""
        self._asked.put(lambda: self._open(number, config, values, run_id))

    def log(self, number: int, row: Mapping[str, float], step: int) -> None:
        """A trial has measured something."""
        self._asked.put(lambda: self._log(number, row, step))

    def tag(self, number: int, key: str, value: str) -> None:
        """Something about a trial has changed."""
        self._asked.put(lambda: self._tag(number, key, value))

    def close(self, number: int, state: str, cause: str = "") -> None:
        """A trial has ended, or is left to a later `--resume`."""
        self._asked.put(lambda: self._close(number, state, cause))

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write while the context lasts, and what is left at its end; runs that are still open are KILLED."""
        thread = threading.Thread(target=self._write, name="trials in MLflow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._asked.put(self._close_all)
            self._asked.put(None)
            thread.join()

    def _write(self) -> None:
        while (ask := self._asked.get()) is not None:
            try:
                ask()
            except Exception as error:  # noqa: BLE001, what is told to MLflow must not end the search
                self._say(f"a trial could not be written to MLflow: {type(error).__name__}: {error}")

    def _close_all(self) -> None:
        for number in list(self._children):
            self._close(number, "running", "")
        self._settle()
        if self._owed:
            numbers = ", ".join(map(str, self._owed))
            self._say(f"MLflow has not taken the runs of trials {numbers}: --resume makes them from the ledger")

    def _open(self, number: int, config: RunConfig, values: Mapping[str, object], run_id: str) -> None:
        if number in self._children:  # a trial that is tried again
            return
        drawn = {f"agmm.drawn.{name}": str(value) for name, value in values.items()}
        tags = {_PARENT: self._parent_id, _NUMBER: str(number)} | drawn
        child = self._children[number] = Child(self._client, config, tags, run_id, self._say)
        child.opened()
        self._name(number, child)

    def _log(self, number: int, row: Mapping[str, float], step: int) -> None:
        if child := self._children.get(number):
            child.log(row, step)
            self._name(number, child)

    def _tag(self, number: int, key: str, value: str) -> None:
        if child := self._children.get(number):
            child.tag(key, value)

    def _close(self, number: int, state: str, cause: str) -> None:
        if child := self._children.pop(number, None):
            self._owed[number] = child, state, cause
        self._settle()

    def _settle(self) -> None:
        """Close what has ended; the first that MLflow refuses keeps those behind it from being refused one by one."""
        for number, (child, state, cause) in list(self._owed.items()):
            if not child.close(state, cause):
                return
            del self._owed[number]
            self._name(number, child)

    def _name(self, number: int, child: Child) -> None:
        if child.run_id and not child.is_named:
            self._on_run(number, child.run_id)
            child.is_named = True
