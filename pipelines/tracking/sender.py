"""Sends a run's journal to MLflow: in order, in bundles, each row once, however often it is begun again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pipelines.errors import ServiceError
from pipelines.faults import fault_point
from pipelines.progress import Say
from pipelines.tracking import runs as tracking
from pipelines.tracking.spool import Entry, Mark, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_AT_ONCE = 1000  # metrics that one request of MLflow takes


class Sender:
    """Sends one journal to the MLflow at an address. Raises ServiceError where that fails, for now or for good.

    A row whose key has been logged at that step or a later one is left out: the first write of a (key, step) stays.
    MLflow is asked for the last steps at the start and after each failure, whose request may have been done or not.
    """

    def __init__(self, spool: Spool, uri: str, say: Say) -> None:
        self.ended = False  # the session has closed or abandoned the run
        self.overtaken = False  # what waits is of a session after the one that `send` was limited to
        self._dispossessed = False  # the run is another session's, which logs these steps itself
        self._spool, self._uri, self._say = spool, uri, say
        self._mark = spool.mark()
        self._client: MlflowClient | None = None
        self._last: dict[str, int] | None = None  # step by key

    @property
    def session(self) -> str:
        """The session that was opened last before what waits."""
        return self._mark.session

    def send(self, *, only: str = "") -> bool:
        """Send some of what waits; returns whether there was any. Stops before a session that follows `only`."""
        entries = self._spool.entries(self._mark.offset)
        for bundle in _bundles(entries):
            opened = bundle[0].operation.get("open", only)
            self.overtaken = bool(only) and self.session == only != opened
            if self.overtaken:
                return False
            with self._trouble():
                self._deliver(bundle)
            self._passed(bundle[-1])
        return bool(entries)

    def close(self, operation: Mapping[str, Any]) -> None:
        """End the run now, as a `close` of the journal does, unless a newer session owns it."""
        with self._trouble():
            self._close(operation)

    def beat(self, session: str) -> None:
        """Tell whoever looks that this session's driver lives; a run that somebody has closed is RUNNING again.

        Where another session owns the run by now, all that is the run's is left to it: metrics and tags that wait or
        come are passed over from here on.
        """
        with self._trouble():
            run = self._run()
            if _owner(run) not in ("", session):
                self._yield_to(_owner(run))
                return
            if run.info.status != "RUNNING":
                self._say(f"the run lives and was {run.info.status}: set to RUNNING again")
                tracking.reopen_run(self._connected(), self._spool.run_id, {})
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self._connected().set_tag(self._spool.run_id, tracking.HEARTBEAT_TAG, now)

    def _yield_to(self, owner: str) -> None:
        if not self._dispossessed:
            self._say(f"session {owner} owns the run by now: metrics and tags of this one are not sent any more")
        self._dispossessed = True

    def _passed(self, entry: Entry) -> None:
        """Note an entry as delivered."""
        self.ended = not entry.operation.get("open") and (self.ended or self._ends(entry.operation))
        self._mark = Mark(entry.end, entry.operation.get("open", self.session))
        try:
            self._spool.acknowledge(self._mark)
        except OSError as error:  # what is sent again is left out
            self._say(f"the mark of what was sent cannot be written: {error}")

    def _ends(self, operation: Mapping[str, Any]) -> bool:
        ending = operation.get("session") if "close" in operation else operation.get("abandon")
        return ending is not None and ending == self.session

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ServiceError) as error:
            self._last = None
            raise ServiceError(f"{type(error).__name__}: {error}") from error

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client = tracking.connect(self._uri)
        return self._client

    def _run(self) -> Run:
        """The run; a deleted one is trouble, since it may be restored."""
        run = self._connected().get_run(self._spool.run_id)
        if run.info.lifecycle_stage != "active":
            raise ServiceError(f"run {self._spool.run_id} was deleted in MLflow")
        return run

    def _deliver(self, bundle: list[Entry]) -> None:
        operation = bundle[0].operation
        if "close" in operation:
            self._close(operation)
        elif self._dispossessed:
            return
        elif "metrics" in operation:
            rows = self._fresh([entry.operation for entry in bundle])
            for start in range(0, len(rows), _AT_ONCE):
                self._log(rows[start : start + _AT_ONCE])
        elif "tag" in operation:
            self._connected().set_tag(self._spool.run_id, operation["tag"], operation["value"])

    def _fresh(self, operations: list[dict[str, Any]]) -> list[Metric]:
        """The metrics of rows, without what MLflow has of them."""
        from mlflow.entities import Metric

        if self._last is None:
            self._last = {metric.key: metric.step for metric in self._run().data.to_proto().metrics}
        rows = []
        for operation in operations:
            step = operation["step"]
            for key, value in operation["metrics"].items():
                if step > self._last.get(key, -1):
                    rows.append(Metric(key, value, operation["time"], step))
                    self._last[key] = step  # a failure forgets it
        return rows

    def _log(self, rows: list[Metric]) -> None:
        """Log rows; one that MLflow will never take is said and left out, not those beside it."""
        from mlflow.exceptions import MlflowException

        fault_point("metrics.send")
        try:
            self._connected().log_batch(self._spool.run_id, metrics=rows)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self._run()  # a run that is not there refuses every row
            if len(rows) == 1:
                self._say(f"MLflow refuses {rows[0].key} of step {rows[0].step}: {error}")
                return
            self._log(rows[: len(rows) // 2])
            self._log(rows[len(rows) // 2 :])

    def _close(self, operation: Mapping[str, Any]) -> None:
        owner = _owner(self._run())
        if owner not in ("", operation["session"]):
            self._say(f"the run is another session's by now: it is not set to {operation['close']}")
            return
        tracking.close_run(self._connected(), self._spool.run_id, operation["close"], operation["cause"])


def _owner(run: Run) -> str:
    """The session that opened the run last."""
    return run.data.tags.get(tracking.SESSION_TAG, "")


def _bundles(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Neighbouring rows of metrics up to a request's worth; anything else alone."""
    bundle: list[Entry] = []
    count = 0
    for entry in entries:
        more = len(entry.operation.get("metrics", ()))
        if bundle and (not more or not count or count + more > _AT_ONCE):
            yield bundle
            bundle, count = [], 0
        bundle.append(entry)
        count += more
    if bundle:
        yield bundle
