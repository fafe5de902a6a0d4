"""The memory of a search: a JSON file for each trial and one for the whole, in a folder or on S3.

Ray's own `Tuner.restore` unpickles what lies in storage, may have missed the last trial that ended, and forgets whom
its schedulers compared. So a search that goes on is a new `Tuner`, whose searcher and scheduler are rebuilt from this.
Every method that changes something is done when the store has it.
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipelines.config import RunConfig, config_differences, flatten, parse_config
from pipelines.errors import NotThere, UserError
from pipelines.search.records import Ending, Mutation, Search, Stage, TrialRecord, as_json, read_record
from pipelines.search.space import Values
from pipelines.storage import Store
from pipelines.version import code_version

_SEARCH, _TRIAL = "search.json", re.compile(r"trials/(\d{4,})\.json")
# What says how long and how a search goes on, not what its trials are: a resume may change it.
_BUDGET = ("trials", "epochs", "hours")
_FREE = frozenset(f"tune.{each}" for each in (*_BUDGET, "concurrent", "hang_after", "retries"))


class Ledger:
    """The trials of one search. Safe to share between threads.

    Made by `create` or `load`. `check` is called before each write: it raises where another driver owns the search
    by now (see `checkpoints.attempts`). Writing raises ServiceError where the store fails.
    """

    def __init__(
        self,
        store: Store,
        search: Search,
        trials: Iterable[TrialRecord] = (),
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._search, self._check, self._clock = store, search, check, clock
        self._trials = {record.number: record for record in trials}
        self._before = max((record.elapsed for record in self._trials.values()), default=0.0)
        self._began = clock()
        self._lock = threading.RLock()

    @classmethod
    def create(
        cls, store: Store, config: RunConfig, *, proxy: bool = False, check: Callable[[], None] = lambda: None
    ) -> Ledger:
        """The memory of a search that begins. Raises UserError where the store holds one already."""
        search = Search(code_version=code_version(), config=config.model_dump(mode="json"), proxy=proxy)
        check()
        if not store.create(_SEARCH, as_json(search)):
            raise UserError(f"There is a search at {store.uri} already. Go on with it by --resume, or rename this one.")
        return cls(store, search, check=check)

    @classmethod
    def load(
        cls, store: Store, config: RunConfig, *, proxy: bool = False, check: Callable[[], None] = lambda: None
    ) -> Ledger:
        """The memory of a search that goes on as `config` says.

        Raises UserError where there is none, where a file is damaged or missing, or where `config` is another search.
        """
        try:
            search = read_record(store, _SEARCH, Search)
        except NotThere as error:
            raise UserError(f"There is no search at {store.uri} to go on with. Start it without --resume.") from error
        _refuse_another(search, config, proxy, store.uri)
        ledger = cls(store, search, _read_trials(store), check)
        ledger._rewrite_search(config=config.model_dump(mode="json"))
        return ledger

    @classmethod
    def open(
        cls, store: Store, config: RunConfig, *, resume: bool, proxy: bool, check: Callable[[], None] = lambda: None
    ) -> Ledger:
        """`load` where a search is resumed that had begun, `create` elsewhere; raises as they do."""
        begun = resume and bool(store.keys(_SEARCH))
        return (cls.load if begun else cls.create)(store, config, proxy=proxy, check=check)

    @property
    def search(self) -> Search:
        """What the search is."""
        return self._search

    @property
    def trials(self) -> Mapping[int, TrialRecord]:
        """All trials by number, as they are now. It never waits for the store."""
        return self._trials

    def of(self, stage: Stage) -> list[TrialRecord]:
        """The trials of one stage, by number."""
        return [record for record in self.trials.values() if record.stage == stage]

    def unfinished(self, stage: Stage | None = None) -> list[TrialRecord]:
        """The trials, of one stage or all, that were drawn and have not ended: a resumed search goes on with them."""
        return [each for each in self.trials.values() if not each.has_ended and stage in (None, each.stage)]

    @property
    def seconds(self) -> float:
        """How long the search has run, over all its drivers. What one ran after its last write is not counted."""
        return self._before + self._clock() - self._began

    @property
    def next_number(self) -> int:
        """The number that the next draw gets, from 1."""
        return len(self.trials) + 1

    def name_parent(self, run_id: str) -> None:
        """Note the parent's MLflow run."""
        self._rewrite_search(parent_run_id=run_id)

    def draw(self, values: Values, stage: Stage) -> TrialRecord:
        """Note a new trial, under the next number."""
        with self._lock:
            return self._write(TrialRecord(number=self.next_number, stage=stage, values=dict(values)))

    def name_run(self, number: int, run_id: str) -> None:
        """Note a trial's run in MLflow, which may be there only after the trial has ended."""
        with self._lock:
            if self._trials[number].run_id != run_id:
                self._write(self._trials[number].model_copy(update={"run_id": run_id}))

    def start(self, number: int, run_id: str | None = None) -> TrialRecord:
        """A trial's training starts, or starts again; `run_id`: its MLflow run, kept where None."""
        with self._lock:
            old = self._trials[number]
            return self._change(
                number,
                state="running",
                attempts=old.attempts + 1,
                run_id=run_id or old.run_id,
                started=old.started or datetime.now(UTC),
            )

    def record(
        self, number: int, metrics: Mapping[str, Any], ends_as: Ending | None = None, cause: str = ""
    ) -> TrialRecord:
        """Note the numbers in an epoch's metrics; `ends_as`: the trial ends with it, in the same write.

        The first report of an epoch is kept: a trial that starts again from its checkpoint may repeat one.
        """
        with self._lock:
            old, new = self._trials[number], _numbers(metrics)
            assert "epoch" in new, f"metrics of trial {number} without their epoch"
            known = any(each["epoch"] == new["epoch"] for each in old.epochs)
            changes: dict[str, Any] = {} if known else {"epochs": (*old.epochs, new)}
            return self._change(number, **changes, **(_ending(ends_as, cause) if ends_as else {}))

    def mutate(self, number: int, epoch: int, values: Values, parent: int) -> TrialRecord:
        """After `epoch` a trial goes on from its parent's weights, with other values."""
        with self._lock:
            old = self._trials[number]
            past = Mutation(epoch=epoch, parent=parent, values=old.values)
            return self._change(number, values=dict(values), mutations=(*old.mutations, past))

    def end(self, number: int, state: Ending, cause: str = "") -> TrialRecord:
        """A trial has ended. One that had ended before stays as it was."""
        return self._change(number, **_ending(state, cause))

    def _change(self, number: int, **changes: Any) -> TrialRecord:
        with self._lock:
            old = self._trials[number]
            return old if old.has_ended or not changes else self._write(old.model_copy(update=changes))

    def _write(self, record: TrialRecord) -> TrialRecord:
        record = record.model_copy(update={"elapsed": self.seconds})
        self._put(f"trials/{record.number:04d}.json", record)
        self._trials = self._trials | {record.number: record}  # a new one: whoever reads has a snapshot
        return record

    def _rewrite_search(self, **changes: Any) -> None:
        with self._lock:
            search = self._search.model_copy(update=changes)
            if search != self._search:
                self._put(_SEARCH, search)
                self._search = search

    def _put(self, key: str, model: BaseModel) -> None:
        self._check()
        with tempfile.NamedTemporaryFile(prefix="agmm-") as file:
            file.write(as_json(model))
            file.flush()
            self._store.put(Path(file.name), key)

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles what a Tuner is given, for a Tuner.restore that nobody calls: the address is enough
        return str, (self._store.uri,)

    def __deepcopy__(self, _: Any) -> Ledger:
        return self


def budget_differs(store: Store, config: RunConfig) -> bool:
    """Whether a search is given another budget than it had. Raises UserError where its file is not there or damaged."""
    try:
        before = parse_config(read_record(store, _SEARCH, Search).config, origin=f"{store.uri}/{_SEARCH}").tune
    except NotThere as error:
        raise UserError(f"There is no search at {store.uri} to go on with. Start it without --resume.") from error
    return any(getattr(before, each) != getattr(config.tune, each) for each in _BUDGET)


def _read_trials(store: Store) -> list[TrialRecord]:
    numbers = {int(found[1]): key for key in store.keys("trials/") if (found := _TRIAL.fullmatch(key))}
    for missing in range(1, max(numbers, default=0)):
        if missing not in numbers:
            raise UserError(
                f"{store.uri}/trials/{missing:04d}.json is missing, and later trials are there. Bring it back."
            )
    records = [read_record(store, numbers[number], TrialRecord) for number in sorted(numbers)]
    for number, record in enumerate(records, 1):
        if record.number != number:
            raise UserError(f"{store.uri}/{numbers[number]} holds trial {record.number}. Bring the right file back.")
    return records


def _refuse_another(search: Search, config: RunConfig, proxy: bool, uri: str) -> None:
    old = parse_config(search.config, origin=f"{uri}/{_SEARCH}")
    before, after = (flatten(each.model_dump(mode="json", include={"tune"})) for each in (old, config))
    keys = [key for key in before | after if before.get(key) != after.get(key) and key not in _FREE]
    lines = config_differences(old, config) + [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys]
    if search.proxy != proxy:
        lines.append(f"--proxy: {search.proxy} -> {proxy}")
    if lines:
        free = ", ".join(sorted(_FREE))
        raise UserError(
            f"The search at {uri} was another one:\n  " + "\n  ".join(lines) + f"\nSet these back (free to change "
            f"are {free}), or start a new search under another name."
        )


def _ending(state: Ending, cause: str) -> dict[str, Any]:
    return {"state": state, "cause": cause, "ended": datetime.now(UTC)}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    numbers = {key: value for key, value in metrics.items() if isinstance(value, Real) and not isinstance(value, bool)}
    return {key: int(value) if isinstance(value, Integral) else float(value) for key, value in numbers.items()}
