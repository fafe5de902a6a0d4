"""Ray Tune's events and what trials tell, as the ledger, MLflow and the live view take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.result import AUTO_RESULT_KEYS, DONE
from ray.util import remove_placement_group
from ray.util.queue import Full

from pipelines.checkpoints.checkpoint import Position
from pipelines.config import RunConfig
from pipelines.on_ray import causes
from pipelines.search.children import Children
from pipelines.search.ledger import Ledger
from pipelines.search.lineage import in_words, lineage
from pipelines.search.live import LiveView, describe
from pipelines.search.population import Fork
from pipelines.search.records import TrialRecord
from pipelines.search.signs import Signs
from pipelines.search.space import applied
from pipelines.search.standing import Standings
from pipelines.search.trial import FAILED, Labelled

_OF_RAY = frozenset({*AUTO_RESULT_KEYS, DONE})  # what Ray adds to what a trial reports
_VALIDATED = ("loss", "top1", "top5")
_BOARD_WAIT_S = 10.0  # with a board that is behind

_Event = TypeVar("_Event", bound=Callable[..., None])


def _deferred(event: _Event) -> _Event:
    """An event of Ray Tune's whose error is raised at the end of the step, as it is.

    Raised at once, it would come out as text in an error of Ray's own; at the end of a trial it would start that again.
    """

    @wraps(event)
    def guarded(self: Conductor, *args: Any, **info: Any) -> None:
        if self.failure is None:
            try:
                event(self, *args, **info)
            except Exception as error:  # noqa: BLE001, `on_step_end` raises it
                self.failure = error

    return cast("_Event", guarded)


class Conductor(Callback):
    """What happens beside Ray Tune's own work while one stage of a search runs.

    config: what the stage's trials train, for so many `epochs` and optimiser `steps`. board: the queue that trials
    write to. ended: called with the record of each trial that has ended, in a thread.
    """

    def __init__(
        self,
        config: RunConfig,
        ledger: Ledger,
        children: Children,
        live: LiveView,
        standings: Standings,
        *,
        board: Any,
        epochs: int,
        steps: int,
        hang_after: float,
        scheduler: str,
        ended: Callable[[TrialRecord], None],
    ) -> None:
        self._config, self._ledger, self._children = config, ledger, children
        self._live, self._standings, self._scheduler, self._ended = live, standings, scheduler, ended
        self._board, self._epochs, self._steps, self._signs = board, epochs, steps, Signs(hang_after)
        self._started: set[int] = set()  # of this driver's trials, those whose end is not told yet
        self.failure: Exception | None = None
        self._rooms: dict[int, Any] = {}  # placement groups of workers, by trial
        self._background = ThreadPoolExecutor(1, thread_name_prefix="ended trials")

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles what a Tuner is given, for a Tuner.restore that nobody calls
        return Callback, ()

    def __deepcopy__(self, _: Any) -> Conductor:
        return self

    def take(self, item: Mapping[str, Any]) -> None:
        """What a trial tells over the board; for its kinds see `board` and `trial`."""
        number, told = item["trial"], item["item"]
        if "metrics" in told:
            self._children.log(number, told["metrics"], told["step"])
        elif "room" in told:
            self._give_back(number)  # of workers before these
            self._rooms[number] = told["room"]
            if number not in self._started:  # it has ended, or was cut short, meanwhile
                self._give_back(number)
        elif "actor" in told or "pulse" in told:
            self._signs.take(number, told)
        elif "loss" in told:
            self._standings.progress(number, told)
        elif "ended" in told:
            self._children.close(number, *told["ended"])

    def make_up(self, records: Iterable[TrialRecord]) -> None:
        """Trials that ended while MLflow was away get their runs, with what the ledger knows of them."""
        for record in (each for each in records if each.has_ended and not each.run_id):
            self._open(record)
            for metrics in record.epochs:
                row = {f"val/{key}": metrics[key] for key in _VALIDATED if key in metrics}
                self._children.log(record.number, row, self._steps * int(metrics["epoch"]) // self._epochs)
            self._children.close(record.number, record.state, record.cause)

    @_deferred
    def forked(self, bring: Callable[[Fork], Position], fork: Fork) -> None:
        """A trial goes on from another's weights, which `bring` copies first: the ledger tells of what is there."""
        position = bring(fork)
        record = self._ledger.mutate(fork.number, position.epoch, fork.values, fork.parent)
        self._tell_of(record, position.step)

    def _tell_of(self, record: TrialRecord, step: int) -> None:
        """Log the values that a trial has changed to, and say it."""
        past = record.mutations[-1]
        for values, at in [(record.drawn, 0)] * (len(record.mutations) == 1) + [(record.values, step)]:
            self._children.log(record.number, {f"tune/{name}": float(value) for name, value in values.items()}, at)
        self._children.tag(record.number, "agmm.trial.lineage", in_words(lineage(self._ledger.trials, record)))
        self._live.say(
            f"trial {record.number} goes on after epoch {past.epoch} from the weights of trial {past.parent}, with "
            f"{describe(record.values)}"
        )

    def end_cut_short(self, records: Iterable[TrialRecord]) -> None:
        """Ray Tune has ended, and its trials with it: of what the end of a budget cuts short it says nothing."""
        for record in records:
            if not record.has_ended:  # and goes on where a resume has more to spend
                cause = f"the budget was used up after epoch {record.last_epoch}"
                self._end(record.model_copy(update={"cause": cause}))
            elif record.number in self._started:  # its last report has used the budget up
                self._end(record)

    def finish(self) -> None:
        """Wait for what `ended` still does."""
        self._background.shutdown()

    @_deferred
    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002, Ray's
        """End trials that hang."""
        self._signs.end_hung()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Show where the search stands; raise what went wrong since the step began."""
        if self.failure is not None:
            raise self.failure
        self._live.draw(self._standings.now)

    @_deferred
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial starts, or starts again."""
        record = self._ledger.start(trial.config["number"])
        self._started.add(record.number)
        self._open(record)

    def _open(self, record: TrialRecord) -> None:
        config = applied(self._config, record.values)
        named = config.model_copy(update={"name": f"{config.name}.trial-{record.number:04d}"})
        self._children.open(record.number, named, record.drawn, record.run_id or "")

    @_deferred
    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """A trial reports an epoch, or that it has failed for good."""
        number = trial.config["number"]
        if FAILED in result:
            self._ledger.end(number, "failed", result[FAILED])
        else:
            metrics = {key: value for key, value in result.items() if key not in _OF_RAY}
            metrics["seconds"] = self._ledger.seconds  # of the search: what orders the epochs of all its trials
            self._ledger.record(number, metrics, "finished" if result["epoch"] >= self._epochs else None)

    @_deferred
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial has reported its last epoch, or was ended early."""
        number = trial.config["number"]
        record = self._ledger.trials[number]
        if not record.has_ended:
            record = self._ledger.end(number, "pruned", f"ended by {self._scheduler} after epoch {record.last_epoch}")
        self._end(record)

    @_deferred
    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial was lost, and starts again."""
        self._give_back(trial.config["number"])
        self._live.say(f"trial {trial.config['number']} starts again: {self._why(trial)}")

    @_deferred
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial was lost for good."""
        self._end(self._ledger.end(trial.config["number"], "failed", self._why(trial)))

    def _why(self, trial: Any) -> str:
        return self._signs.hung.get(trial.config["number"]) or causes.in_words(_last_error(trial))

    def _give_back(self, number: int) -> None:
        if room := self._rooms.pop(number, None):
            remove_placement_group(room)

    def _end(self, record: TrialRecord) -> None:
        self._started.discard(record.number)
        self._give_back(record.number)
        self._signs.forget(record.number)
        self._standings.forget(record.number)
        self._close_run(record)
        self._live.say(self._sentence(record))
        self._background.submit(self._ended, record)

    def _close_run(self, record: TrialRecord) -> None:
        """Close the trial's run behind the rows of it that wait on the board."""
        ended = (record.state, record.cause)
        try:
            Labelled(self._board, record.number).put({"ended": ended}, timeout=_BOARD_WAIT_S)
        except (Full, RayError):
            self._children.close(record.number, *ended)

    def _sentence(self, record: TrialRecord) -> str:
        words = [
            f"trial {record.number} {record.outcome} ({describe(record.values)})",
            self._standings.value_of(record),
        ]
        return " ".join(filter(None, words)) + (f": {record.cause}" if record.cause else "")


def _last_error(trial: Any) -> str:
    """The text of a trial's newest error. Ray's `get_error` looks into the storage, which has it some time later."""
    if trial.error_file is None:
        return ""
    with suppress(OSError):
        return Path(trial.error_file).read_text(errors="replace").rpartition("Failure # ")[2]
    return ""
