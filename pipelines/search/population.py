"""Population based training: Ray's own, over our checkpoints.

All trials train to the same epoch and wait there; then Ray compares them. A trial of the worst quarter goes on from
the weights and the momentum of one of the best, with values changed at random. As all wait, epochs compare like with
like, nobody writes while the checkpoint is copied, and what is copied cannot have been pruned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune as ray_tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, Searcher

from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Position, load, newest_usable, save
from pipelines.config import TuneConfig
from pipelines.config.search import Drawn
from pipelines.errors import ServiceError
from pipelines.progress import Say
from pipelines.search.ledger import Ledger
from pipelines.search.objectives import MEASURES
from pipelines.search.records import Stage
from pipelines.search.searchers import Numbered
from pipelines.search.space import Value, Values
from pipelines.storage import Store


@dataclass(frozen=True)
class Fork:
    """A trial is to go on from its parent's weights, with these values."""

    number: int
    parent: int
    values: Values


class Population(PopulationBasedTraining):
    """Ray's scheduler in its synchronous mode, for the trials of a ledger, each of `max_epochs`.

    on_fork: called while no trial trains. It brings the parent's checkpoint to the trial, which then starts again.

    What Ray compared before is not remembered: a search that is resumed brings all trials to the same epoch first.
    """

    def __init__(
        self, tune: TuneConfig, max_epochs: int, ledger: Ledger, stage: Stage, on_fork: Callable[[Fork], None]
    ) -> None:
        every, measure = tune.perturb_every, MEASURES[tune.objectives[0]]
        furthest = max((record.last_epoch for record in ledger.unfinished(stage)), default=0)
        self._ledger, self._max_epochs, self._on_fork, self._drawn = ledger, max_epochs, on_fork, tune.space.drawn
        super().__init__(
            time_attr="epoch",
            metric=measure.key,
            mode=measure.mode,
            perturbation_interval=every,
            burn_in_period=(furthest // every + 1) * every,
            hyperparam_mutations={"values": {name: _domain(drawn) for name, drawn in self._drawn.items()}},
            custom_explore_fn=self._within_space,
            log_config=False,
            synch=True,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Ray pickles what a Tuner is given, for a Tuner.restore that nobody calls
        return FIFOScheduler, ()

    def __deepcopy__(self, _: Any) -> Population:
        return self

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on. Neither its end nor an epoch that it tells again is compared."""
        known, epoch = self._ledger.trials[trial.config["number"]].last_epoch, result.get("epoch", 0)
        if epoch <= known or epoch >= self._max_epochs:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(controller, trial, result))

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """A trial was lost: Ray keeps it among those that live, for whom the others would wait for ever."""
        controller.get_live_trials().discard(trial)

    def choose_trial_to_run(self, controller: Any) -> Any:
        """The next trial. Where all wait for one that was lost, Ray compares those that are left."""
        chosen = super().choose_trial_to_run(controller)
        left = [trial for trial in controller.get_trials() if not trial.is_finished()]
        if chosen is None and left and all(trial.status == Trial.PAUSED for trial in left):
            super().on_trial_result(controller, left[0], left[0].last_result)
            chosen = super().choose_trial_to_run(controller)
        return chosen

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the trial goes on with, as Ray's PB2 overrides it; Ray would give it the other's number as well."""
        config, operations = super()._get_new_config(trial, trial_to_clone)
        config["number"] = trial.config["number"]
        self._on_fork(Fork(config["number"], trial_to_clone.config["number"], config["values"]))
        return config, operations

    def _within_space(self, config: dict[str, Any]) -> dict[str, Any]:
        """Changed values where the space has them: Ray multiplies past the ends of an interval."""
        values = {name: _within(self._drawn[name], value) for name, value in config["values"].items()}
        return config | {"values": values}


def population(searcher: Numbered, tune: TuneConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """All trials of a searcher at once, as arguments of Ray's Tuner and its TuneConfig: pbt takes no searcher."""
    # a process that takes over another trial would have to end the threads of the one before within two seconds
    warnings.filterwarnings("ignore", "Consider boosting PBT performance by enabling `reuse_actors`")
    trials: list[Any] = []
    while (trial := searcher.suggest(str(len(trials)))) != Searcher.FINISHED:
        trials.append(trial)
    space = {"number": None, "values": dict.fromkeys(tune.space.drawn)}
    return {"param_space": space}, {"search_alg": BasicVariantGenerator(trials), "num_samples": len(trials)}


def copy_newest(parent: Store, child: Store, session: str, say: Say) -> Position:
    """Commit the parent's newest checkpoint as a new attempt of the child's, hashes verified; returns where it is.

    What the child had committed stays until its next checkpoint, and sorts before. Raises ServiceError where the
    parent has none or a store fails.
    """
    name = newest_usable(parent, say)
    if not name:
        raise ServiceError(f"{parent.uri} holds no checkpoint any more, and a trial was to go on from it.")
    checkpoint = load(parent, name)
    save(claim(child, session), checkpoint)
    return checkpoint.position


def _domain(drawn: Drawn) -> Any:
    """What Ray draws a value from anew, or steps to the next in."""
    if drawn.choice is not None:
        return list(drawn.choice)
    return ray_tune.uniform(*drawn.uniform) if drawn.uniform else ray_tune.loguniform(*(drawn.loguniform or (1, 2)))


def _within(drawn: Drawn, value: Value) -> Value:
    ends = drawn.uniform or drawn.loguniform
    if ends is None:
        return value
    low, high = ends
    number = float(value)
    if drawn.step is not None:
        number = low + round((number - low) / drawn.step) * drawn.step
    return min(max(number, low), high)
