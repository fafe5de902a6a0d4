"""`agmm tune`: a search over trainings of a recipe, from its space to a winner that is written down and registered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints.attempts import claim
from pipelines.config import RunConfig, TuneConfig, parse_config
from pipelines.driver import Prepared, prepare
from pipelines.errors import UserError, failure_of
from pipelines.home import home
from pipelines.on_ray import board
from pipelines.on_ray import driver as ray_driver
from pipelines.on_ray.ends import head_watched
from pipelines.progress import Say
from pipelines.search.children import Children
from pipelines.search.ledger import Ledger, budget_differs
from pipelines.search.objectives import ranked
from pipelines.search.records import Stage
from pipelines.search.results import Outcome, conclude
from pipelines.search.schedulers import check_grace
from pipelines.search.searchers import build_draw, given_draw
from pipelines.search.space import check_space
from pipelines.search.stage import Search, run_stage
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking
from pipelines.tracking.lifecycle import Opened, tracked
from pipelines.tracking.process import new_session

if TYPE_CHECKING:
    from mlflow import MlflowClient

_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a banner even when it is told to be silent
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger and MLflow have what Ray would write beside them
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that has failed for good reports no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the search; Ray Tune would take it for its end
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",  # the live view says what runs
}


def tune_recipe(config: RunConfig, *, resume: bool, proxy: bool, out: Path | None, say: Say) -> dict[str, Any]:
    """Search as the recipe's `tune` says; returns what `--json` prints: `best`, `trials` and where they are.

    proxy: train on less (`tune.proxy`) first, and only the best of that in full.
    out: where the winner's recipe goes; none: below the home.

    Raises:
        UserError: for a space, data or a resume that do not fit, before anything starts.
        ServiceError: where a service fails, or no trial has finished.

    """
    config = _searchable(config)
    check_space(config)
    _check_out(out)
    _check_population(config, proxy)
    data = prepare(config, say)
    if proxy:
        check_space(proxy_of(config))
        prepare(proxy_of(config), say)
    _check_grace(proxy_of(config) if proxy else config, data)
    client = tracking.connect(str(data.config.tracking.uri))
    searched = data.config.model_copy(update={"name": f"{config.name}.search"})
    if resume:
        _check_more_to_do(client, searched, data.config)
    with tracked(client, searched, data.manifest, resume=resume, say=say, finished=True) as run:
        with _opened(client, data, run, proxy, resume, say) as search:
            try:
                stage = _train(search, proxy)
            except KeyboardInterrupt:
                ended = sum(record.has_ended for record in search.ledger.trials.values())
                say(f"{ended} trials have ended; the same command with --resume goes on with the others")
                raise
        out = out or home() / "winners" / f"{config.name}-{run.id[:8]}.yaml"
        return conclude(client, Outcome(config, data, search.ledger, stage, run), out, say)


def _check_more_to_do(client: MlflowClient, searched: RunConfig, config: RunConfig) -> None:
    """Refuse a search that has finished and is given nothing more: it would register its winner once more."""
    with tracking.explained(str(searched.tracking.uri)):
        run = tracking.find_resumable(client, searched, finished=True).info
    store = open_store(f"{config.checkpoint.uri}/{run.run_id}", proven=True)
    if run.status == "FINISHED" and not budget_differs(store, config):
        raise UserError(
            f"The search {run.run_id} has finished, and nothing more is asked of it. Raise --trials, tune.epochs or "
            "tune.hours to go on with it, or leave out --resume to start another."
        )


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.exists() or out.suffix not in (".yaml", ".yml"):
        what = "is there already" if out.exists() else "is not a .yaml file"
        raise UserError(f"--out {out} {what}. Give the path of a new .yaml file for the winner's recipe.")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be written: {there} is no folder that you may write to. Give another one.")


def _check_grace(config: RunConfig, data: Prepared) -> None:
    """Refuse a scheduler that has nothing to do, before there is a run: the best of a proxy are trained without one."""
    assert config.tune is not None  # of `_searchable`
    check_grace(config.tune, config.total_epochs(data.manifest.splits["train"].count))


def _check_population(config: RunConfig, proxy: bool) -> None:
    if config.tune is None or config.tune.scheduler != "pbt":
        return
    if proxy:
        raise UserError("--proxy sorts values that do not change, and tune.scheduler=pbt changes them. Leave one out.")
    if config.run.most_workers > 1:
        raise UserError(
            f"tune.scheduler=pbt pauses its trials, which have a process each, and run.workers is "
            f"{config.run.workers}. Set run.workers=1, or another scheduler."
        )


def proxy_of(config: RunConfig) -> RunConfig:
    """The cheaper training of a recipe that `tune.proxy` describes. Raises UserError where that is no valid run."""
    assert config.tune is not None
    cheap, tree = config.tune.proxy, config.model_dump(mode="json")
    tree["data"] |= {"share": cheap.share} | ({"resolution": cheap.resolution} if cheap.resolution else {})
    tree["optim"] |= {"epochs": cheap.epochs} if cheap.epochs else {}
    return parse_config(tree, origin=f"tune.proxy of {config.name}")


def _searchable(config: RunConfig) -> RunConfig:
    """The recipe with its search, and with what the objectives need measured in each epoch."""
    tune = config.tune or TuneConfig()
    run = config.run
    if set(tune.objectives) & {"sops", "macs", "energy_mj", "size_mb"}:
        run = run.model_copy(update={"operations": "epoch"})
    return config.model_copy(update={"tune": tune, "run": run})


def _train(search: Search, proxy: bool) -> Stage:
    """Train what is to be trained; returns the stage whose trials count."""
    config, tune, ledger = search.config, search.tune, search.ledger
    if not proxy:
        run_stage(search, "search", config, tune, build_draw(config, ledger), tune.trials)
        return "search"
    run_stage(search, "proxy", proxy_of(config), tune, build_draw(config, ledger, "proxy"), tune.trials)
    values = [record.values for record in ranked(ledger.of("proxy"), tune.objectives[0])[: tune.proxy.top]]
    if not values:  # nothing to train in full
        return "proxy"
    in_full = tune.model_copy(update={"scheduler": "none"})
    run_stage(search, "full", config, in_full, given_draw(ledger, values, "full"), len(values))
    return "full"


@contextmanager
def _opened(client: MlflowClient, data: Prepared, run: Opened, proxy: bool, resume: bool, say: Say) -> Iterator[Search]:
    """The search's memory, claimed for this driver, its child runs in MLflow, and Ray."""
    config, session, watched = data.config, new_session(), board.Board()
    store = open_store(f"{config.checkpoint.uri}/{run.id}", proven=True)
    ledger = Ledger.open(store, config, resume=resume, proxy=proxy, check=claim(store, session).check)
    ledger.name_parent(run.id)
    children = Children(client, run.id, ledger.name_run, say)
    with children.written(), _ray(config, watched, say):
        yield Search(run.id, data, ledger, session, children, watched, say)


@contextmanager
def _ray(config: RunConfig, watched: board.Board, say: Say) -> Iterator[None]:
    """Ray with room for the trials, and the board on which they tell how they go."""
    os.environ.update(_ENVIRONMENT)
    assert config.tune is not None  # of `_searchable`
    cpus = config.run.most_workers * config.run.cpus_per_worker
    at_once = config.tune.concurrent or max((os.cpu_count() or 1) // cpus, 1)
    try:
        with (
            ray_driver.connected(needed=cpus, wanted=at_once * cpus, say=say),
            board.heard(watched, nullcontext(_ignore)),
            head_watched(watched),
        ):
            yield
    except (KeyboardInterrupt, SystemExit) as ended:
        if watched.failure:  # the board's own interrupt, see `board`
            raise failure_of(watched.failure) from None
        raise KeyboardInterrupt from ended


def _ignore(_: Any) -> None:
    """All that trials tell has a listener."""
