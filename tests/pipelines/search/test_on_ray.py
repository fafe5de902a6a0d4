"""A search on a Ray of its own: toy trials, driven as the launcher drives real ones, cut off in the middle."""

import json
import math
import signal
from pathlib import Path

import pytest
import ray
from ray import tune

from pipelines.search.budget import Budget
from pipelines.search.ledger import Ledger
from pipelines.search.objectives import best
from pipelines.search.schedulers import build_scheduler
from pipelines.search.searchers import Numbered, build_draw

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def local_ray():
    before = signal.getsignal(signal.SIGTERM)
    options = {"num_cpus": 2, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ray.init(address="local", log_to_driver=False, logging_level="ERROR", **options)
    yield
    ray.shutdown()
    signal.signal(signal.SIGTERM, before)  # Ray's own would stay, for all tests that follow


def _top1(values, epoch):
    return (1 - (values["leak"] - 0.8) ** 2) * (1 - 0.5**epoch)


def _toy(config):
    """Nine epochs, from the one that its file has, told again; number 3 crashes, number 4's metric is no number."""
    kept = Path(config["folder"], f"{config['number']}.json")
    for epoch in range(json.loads(kept.read_text()) if kept.exists() else 1, 10):
        if config["number"] == 3:
            raise RuntimeError("crash")
        kept.write_text(json.dumps(epoch))
        tune.report({"epoch": epoch, "top1": math.nan if config["number"] == 4 else _top1(config["values"], epoch)})


class _Notes(tune.Callback):
    def __init__(self, ledger):
        self.ledger = ledger

    def on_trial_start(self, iteration, trials, trial, **_):
        self.ledger.start(trial.config["number"])

    def on_trial_result(self, iteration, trials, trial, result, **_):
        ending = "finished" if result["epoch"] == 9 else "pruned"
        ending = "failed" if math.isnan(result["top1"]) else ending
        metrics = {key: result[key] for key in ("epoch", "top1")}
        self.ledger.record(trial.config["number"], metrics, ends_as=ending if result.get("done") else None)

    def on_trial_error(self, iteration, trials, trial, **_):
        self.ledger.end(trial.config["number"], "failed", "crash")


def _drive(config, ledger, folder):
    budget = Budget(config.tune, ledger)
    searcher = Numbered(ledger, build_draw(config, ledger), budget, config.tune.trials)
    scheduler = build_scheduler(config.tune, config.optim.epochs, ledger)
    tuner = tune.Tuner(
        _toy,
        param_space={"folder": str(folder)},
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=scheduler, num_samples=config.tune.trials, max_concurrent_trials=2
        ),
        run_config=tune.RunConfig(
            name=f"driver{len(ledger.trials)}",
            storage_path=str(folder),
            stop=budget,
            callbacks=[_Notes(ledger)],
            verbose=0,
        ),
    )
    tuner.fit()
    return scheduler


def test_a_search_that_is_cut_off_goes_on_with_nothing_lost(local_ray, tmp_path, store, searched, monkeypatch):
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    tune_section = {"trials": 12, "searcher": "tpe", "scheduler": "asha"}
    short = searched(tune_section | {"epochs": 14})
    ledger = Ledger.create(store, short)
    _drive(short, ledger, tmp_path)
    first = Ledger.load(store, short).trials
    left = [record.number for record in first.values() if not record.has_ended]
    assert 14 <= sum(len(record.epochs) for record in first.values()) <= 16
    assert left
    assert len(first) < 12

    config = searched(tune_section)
    scheduler = _drive(config, Ledger.load(store, config), tmp_path)
    trials = Ledger.load(store, config).trials
    assert sorted(trials) == list(range(1, 13))
    assert all(trials[number].values == record.values for number, record in first.items())
    assert all(trials[number] == record for number, record in first.items() if record.has_ended and number != 4)
    assert (trials[3].state, trials[4].state) == ("failed", "failed")
    assert {trials[number].state for number in trials if number not in (3, 4)} == {"finished", "pruned"}
    for record in trials.values():
        epochs = [metrics["epoch"] for metrics in record.epochs]
        assert epochs == list(range(1, len(epochs) + 1)), "an epoch was lost or repeated"
        values = [metrics["top1"] for metrics in record.epochs if record.number != 4]
        assert values == [_top1(record.values, epoch) for epoch in epochs[: len(values)]]
    assert best(trials.values(), "top1").state == "finished"
    rebuilt = build_scheduler(config.tune, 9, Ledger.load(store, config))
    assert rebuilt.debug_string().split("Bracket")[1] == scheduler.debug_string().split("Bracket")[1]


def test_a_search_with_nothing_left_to_train_ends_at_once(local_ray, tmp_path, store, searched, monkeypatch):
    """As one does that had ended, and is resumed to register its winner."""
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    config = searched({"trials": 1, "scheduler": "asha"})
    ledger = Ledger.create(store, config)
    ledger.draw({"leak": 0.5}, "search")
    before = ledger.record(1, {"epoch": 9, "top1": 0.5}, ends_as="finished")
    _drive(config, Ledger.load(store, config), tmp_path)
    assert Ledger.load(store, config).trials == {1: before}
