"""One stage of a search: Ray Tune over trainings of one configuration, with what surrounds it."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.checkpoints.checkpoint import Position
from pipelines.config import RunConfig, TuneConfig
from pipelines.driver import Prepared
from pipelines.errors import Fenced, ServiceError
from pipelines.on_ray.board import Board
from pipelines.on_ray.driver import device_of, ray_storage
from pipelines.on_ray.work import Work
from pipelines.progress import Say
from pipelines.search.budget import Budget
from pipelines.search.children import Children
from pipelines.search.conductor import Conductor
from pipelines.search.ledger import Ledger
from pipelines.search.live import LiveView
from pipelines.search.objectives import best, pareto_front
from pipelines.search.population import Fork, Population, copy_newest, population
from pipelines.search.records import Stage, TrialRecord
from pipelines.search.schedulers import build_scheduler
from pipelines.search.searchers import Draw, Numbered
from pipelines.search.standing import Standings
from pipelines.search.trial import address_of, train_trial
from pipelines.storage import open_store
from pipelines.version import code_version

_TITLES = {"search": "search", "proxy": "search on the proxy", "full": "the best of the proxy in full"}


@dataclass(frozen=True)
class Search:
    """A search that is under way."""

    id: str  # of its run in MLflow
    data: Prepared  # the recipe, resolved, with its `tune`
    ledger: Ledger
    session: str  # of this driver
    children: Children
    watched: Board
    say: Say

    @property
    def config(self) -> RunConfig:
        """The recipe, resolved, with its `tune`."""
        return self.data.config

    @property
    def tune(self) -> TuneConfig:
        """How it searches."""
        assert self.config.tune is not None
        return self.config.tune


def run_stage(search: Search, stage: Stage, config: RunConfig, tune: TuneConfig, draw: Draw, limit: int) -> None:
    """Train `limit` trials of `config` as `tune` says; those that the ledger has are not trained again."""
    ledger, budget, objective = search.ledger, Budget(tune, search.ledger), tune.objectives[0]
    images = search.data.manifest.splits["train"].count
    epochs = config.total_epochs(images)
    standings = Standings(ledger, budget, stage, limit=limit, epochs=epochs, objective=objective)
    live = LiveView(_TITLES[stage], objective)
    leftovers = _Leftovers(search, stage)
    conductor = Conductor(
        config,
        ledger,
        search.children,
        live,
        standings,
        board=search.watched.queue,
        epochs=epochs,
        steps=config.total_steps(images),
        hang_after=tune.hang_after,
        scheduler=tune.scheduler,
        ended=lambda _: leftovers.remove(ledger.of(stage)),
    )
    search.watched.listeners["trial"] = conductor.take
    conductor.make_up(ledger.of(stage))
    searcher = Numbered(ledger, draw, budget, limit, stage)
    if tune.scheduler == "pbt":
        scheduler = Population(tune, epochs, ledger, stage, partial(conductor.forked, partial(_bring, search)))
    else:
        scheduler = build_scheduler(tune, epochs, ledger, stage)
    tuner = _tuner(search, config, tune, searcher, scheduler, conductor, budget)
    try:
        with live.shown(), _resumable():
            tuner.fit()
            conductor.end_cut_short(ledger.of(stage))
    finally:
        conductor.finish()
    leftovers.remove(ledger.of(stage), again=True)
    _remove_folders(search)


@contextmanager
def _resumable() -> Iterator[None]:
    """Says of a service that failed what to do."""
    try:
        yield
    except Fenced:
        raise
    except ServiceError as error:
        raise ServiceError(f"{error} The search keeps what its trials have reached: go on with --resume.") from error


def _tuner(
    search: Search, config: RunConfig, tune: TuneConfig, searcher: Any, scheduler: Any, conductor: Any, budget: Budget
) -> Any:
    import ray
    from ray import tune as ray_tune

    work = Work(config, search.id, search.session, search.data.folder, code_version(), search.watched.queue)
    trainable = ray_tune.with_parameters(train_trial, work=work)
    room, resources = ray.cluster_resources(), _resources(config)
    if tune.scheduler == "pbt":
        more, how = population(searcher, tune)
        resources["cpu"] = max(resources["cpu"], room.get("CPU", 1) / (tune.concurrent or math.inf))
    else:  # the searcher says when it has no more
        more, how = {}, {"search_alg": searcher, "num_samples": -1}
        how["max_concurrent_trials"] = tune.concurrent or _room(config, room)
    return ray_tune.Tuner(
        ray_tune.with_resources(trainable, resources),
        tune_config=ray_tune.TuneConfig(scheduler=scheduler, **how),
        **more,
        run_config=ray_tune.RunConfig(
            name=f"{search.id}-{uuid.uuid4().hex[:8]}",
            callbacks=[conductor],
            stop=budget,
            failure_config=ray_tune.FailureConfig(max_failures=tune.retries),
            verbose=0,
            **ray_storage(),
        ),
    )


def _bring(search: Search, fork: Fork) -> Position:
    """Copy the parent's newest checkpoint to the trial that is to go on from it."""
    base = search.config.checkpoint.uri
    parent, child = (
        open_store(f"{base}/{address_of(search.id, number)}", proven=True) for number in (fork.parent, fork.number)
    )
    return copy_newest(parent, child, search.session, search.say)


def _remove_folders(search: Search) -> None:
    """Remove what Ray has kept of the search: the ledger has all of it, and no pickles."""
    from pyarrow.fs import FileSelector, LocalFileSystem

    place = ray_storage()
    files = place.get("storage_filesystem") or LocalFileSystem()
    try:
        for found in files.get_file_info(FileSelector(place["storage_path"], allow_not_found=True)):
            if found.base_name.startswith(search.id):
                files.delete_dir(found.path)
    except OSError as error:
        search.say(f"what Ray kept of the search stays at {place['storage_path']}/{search.id}*: {error}")


def _resources(config: RunConfig) -> dict[str, float]:
    """What a trial's own process computes with; where it has workers, they compute."""
    if config.run.most_workers > 1:
        return {"cpu": 0.0, "memory": 1.0}  # a byte: Ray Tune refuses what needs nothing, and every CPU is the workers'
    return {"cpu": float(config.run.cpus_per_worker)} | ({"gpu": 1.0} if device_of(config) == "cuda" else {})


def _room(config: RunConfig, resources: dict[str, float]) -> int:
    """Trials that the cluster has room for at a time."""
    workers = config.run.most_workers
    room = resources.get("CPU", 1) / (workers * config.run.cpus_per_worker)
    if device_of(config) == "cuda":
        room = min(room, resources.get("GPU", 0) / workers)
    return max(int(room), 1)


class _Leftovers:
    """The checkpoints of a stage's trials: what nobody will go on from, register or compare is removed."""

    def __init__(self, search: Search, stage: Stage) -> None:
        self._search, self._stage = search, stage
        self._removed: set[int] = set()

    def remove(self, records: Iterable[TrialRecord], *, again: bool = False) -> None:
        """Remove those of trials that have ended, but of the best; `again`: also where that was done before.

        A process that is ended may write a last file. What cannot be removed is said, and stays.
        """
        try:
            self._remove(records, again)
        except ServiceError as error:
            self._search.say(f"checkpoints that nobody needs any more were not removed: {error}")

    def _remove(self, records: Iterable[TrialRecord], again: bool) -> None:
        ended = [record for record in records if record.has_ended]
        kept = {record.number for record in self._kept(ended)}
        for record in ended:
            if record.number not in kept and (again or record.number not in self._removed):
                store = open_store(f"{self._search.config.checkpoint.uri}/{address_of(self._search.id, record.number)}")
                store.delete(store.keys(""))
                self._removed.add(record.number)

    def _kept(self, ended: list[TrialRecord]) -> list[TrialRecord]:
        if self._stage == "proxy":
            return []
        objectives = self._search.tune.objectives
        found = best(ended, objectives[0])
        return pareto_front(ended, objectives) + ([found] if found else [])
