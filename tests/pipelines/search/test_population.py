"""Population based training over a ledger, driven as Ray's controller drives it, and the copy of a checkpoint."""

import random
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Position
from pipelines.config import parse_config
from pipelines.errors import Fenced, ServiceError, UserError
from pipelines.loop.worker import run
from pipelines.loop.world import Outside, World
from pipelines.search.budget import Budget
from pipelines.search.launcher import tune_recipe
from pipelines.search.ledger import Ledger
from pipelines.search.lineage import in_words, lineage
from pipelines.search.population import Population, copy_newest, population
from pipelines.search.schedulers import check_grace
from pipelines.search.searchers import Numbered, build_draw
from pipelines.storage import FolderStore

_SPACE = {"leak": {"uniform": [0, 0.9], "step": 0.3}, "threshold": {"choice": [0.5, 1.0]}, "surrogate_width": None}
_PBT = {"scheduler": "pbt", "trials": 4, "perturb_every": 2, "space": _SPACE}


class _Trial:
    """As much of Ray's trial as the scheduler uses."""

    def __init__(self, config):
        self.config, self.trial_id, self.status = config, str(config["number"]), Trial.RUNNING
        self.experiment_tag, self.last_result, self.checkpoint = "", {}, object()
        self.temporary_state = SimpleNamespace(saving_to=None)
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None), _latest_checkpoint_result=None)
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)
        self.set_experiment_tag = lambda tag: setattr(self, "experiment_tag", tag)
        self.set_config = lambda config: setattr(self, "config", config)

    def is_finished(self):
        return self.status in (Trial.TERMINATED, Trial.ERROR)


class _Controller:
    """As much of Ray's controller, with a pause that is over at once."""

    search_alg = None

    def __init__(self, config, ledger):
        self.ledger, self.forks = ledger, []
        self.scheduler = Population(config.tune, config.optim.epochs, ledger, "search", self.forks.append)
        searcher = Numbered(ledger, build_draw(config, ledger), Budget(config.tune, ledger), config.tune.trials)
        _, how = population(searcher, config.tune)
        self.trials = [_Trial(config) for config in how["search_alg"]._points_to_evaluate]
        assert len(self.trials) == how["num_samples"]
        self.live = set(self.trials)
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def get_trials(self):
        return self.trials

    def get_live_trials(self):
        return self.live

    def pause_trial(self, trial, should_checkpoint):
        trial.status = Trial.PAUSED

    def _schedule_trial_save(self, trial, result):
        return trial.checkpoint

    def report(self, index, epoch, top1):
        trial, result = self.trials[index], {"epoch": epoch, "top1": top1}
        trial.status, trial.last_result = Trial.RUNNING, result
        decision = self.scheduler.on_trial_result(self, trial, result)
        self.ledger.record(trial.config["number"], result)
        if decision == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED
        return decision

    def lose(self, index):
        self.trials[index].status = Trial.ERROR
        self.scheduler.on_trial_error(self, self.trials[index])


@pytest.fixture
def controller(ledger, searched):
    return _Controller(searched(_PBT), ledger)


def test_the_worst_goes_on_from_the_best_when_all_have_come_as_far(controller):
    values = [trial.config["values"] for trial in controller.trials]
    assert [controller.report(index, 1, 0.1) for index in range(4)] == [TrialScheduler.CONTINUE] * 4
    assert [controller.report(index, 2, 0.1 * index) for index in (3, 0, 2)] == [TrialScheduler.PAUSE] * 3
    assert not controller.forks
    assert controller.scheduler.choose_trial_to_run(controller) is None, "they wait for the last"
    controller.report(1, 2, 0.1)
    ((number, parent, new),) = [(fork.number, fork.parent, fork.values) for fork in controller.forks]
    assert (number, parent) == (1, 4)
    assert controller.trials[0].config == {"number": 1, "values": new}
    assert [trial.config["values"] for trial in controller.trials[1:]] == values[1:]
    assert controller.scheduler.choose_trial_to_run(controller) is not None
    assert controller.report(0, 2, 0.3) == TrialScheduler.CONTINUE, "it tells of the epoch again that it starts from"


def test_changed_values_stay_in_the_space(controller):
    random.seed(0)  # of Ray's choices
    for epoch in (2, 4, 6, 8):
        for index in range(4):
            controller.report(index, epoch, 0.1 * index)
    assert len(controller.forks) == 4
    for fork in controller.forks:
        assert min(abs(fork.values["leak"] - each) for each in (0, 0.3, 0.6, 0.9)) < 1e-9
        assert fork.values["threshold"] in (0.5, 1.0)
    assert len({tuple(fork.values.items()) for fork in controller.forks}) > 1
    assert [controller.report(index, 9, 0.1) for index in range(4)] == [TrialScheduler.CONTINUE] * 4, "the end"
    assert len(controller.forks) == 4


def test_nobody_waits_for_a_trial_that_was_lost(controller):
    for index in range(3):
        controller.report(index, 2, 0.1 * index)
    controller.lose(3)
    assert controller.scheduler.choose_trial_to_run(controller) in controller.trials[:3]
    assert [(fork.number, fork.parent) for fork in controller.forks] == [(1, 3)]


def test_a_resumed_population_is_compared_where_all_meet(store, searched):
    config = searched(_PBT)
    first = _Controller(config, Ledger.create(store, config))
    for index, epoch in ((0, 1), (0, 2), (1, 1), (2, 1), (2, 2), (3, 1)):
        first.report(index, epoch, 0.1 * index)
    second = _Controller(config, Ledger.load(store, config))
    assert [trial.config for trial in second.trials] == [trial.config for trial in first.trials]
    for epoch in (2, 3):
        assert [second.report(index, epoch, 0.1 * index) for index in range(4)] == [TrialScheduler.CONTINUE] * 4
    for index in range(4):
        second.report(index, 4, 0.1 * index)
    assert [(fork.number, fork.parent) for fork in second.forks] == [(1, 4)]


def test_the_ledger_remembers_what_the_weights_were_trained_with(store, searched):
    ledger = Ledger.create(store, searched(_PBT))
    for leak in (0.1, 0.2, 0.3):
        ledger.draw({"leak": leak}, "search")
    ledger.mutate(1, 2, {"leak": 0.4}, parent=2)
    ledger.mutate(3, 4, {"leak": 0.5}, parent=1)
    ledger.mutate(1, 6, {"leak": 0.6}, parent=2)
    trials = Ledger.load(store, searched(_PBT)).trials
    assert (trials[1].values, trials[1].drawn) == ({"leak": 0.6}, {"leak": 0.1})
    assert [tuple(span) for span in lineage(trials, trials[3])] == [
        (1, 2, {"leak": 0.2}),
        (3, 1, {"leak": 0.4}),
        (5, 3, {"leak": 0.5}),
    ]
    assert in_words(lineage(trials, trials[2])) == "from epoch 1 leak 0.2 (trial 2)"


@pytest.mark.parametrize(
    ("tune", "words"),
    [({"trials": 1}, "trials=1"), ({"searcher": "tpe"}, "searcher=tpe"), ({"perturb_every": 9}, "perturb_every=9")],
)
def test_what_is_no_population_is_refused(searched, tune, words):
    with pytest.raises(UserError, match=words):
        check_grace(searched(_PBT | tune).tune, 9)


@pytest.mark.parametrize(("proxy", "workers", "words"), [(True, 1, "--proxy"), (False, 2, "run.workers is 2")])
def test_what_a_population_cannot_pause_is_refused(searched, proxy, workers, words):
    config = searched(_PBT, run={"workers": workers})
    with pytest.raises(UserError, match=words):
        tune_recipe(config, resume=False, proxy=proxy, out=None, say=print)


class _PausedError(Exception):
    pass


def _train(config, store, pause_after=None):
    """Train until a trial would be paused; epochs as told, each with how many checkpoints were committed by then."""
    told = []

    def on_epoch(metrics):
        told.append((metrics["epoch"], len(checkpoints.committed(store))))
        if metrics["epoch"] == pause_after:
            raise _PausedError

    outside = Outside(
        store=store,
        log=lambda row, step: None,
        progress=lambda item: None,
        on_epoch=on_epoch,
        session="driver",
        commits_epochs=True,
    )
    with suppress(_PausedError):
        run(config, World(0, 1, torch.device("cpu")), outside, Path(config.data.uri), "test")
    return told


def test_a_copied_checkpoint_goes_on_as_the_parent_would_with_the_new_values(tiny_tree, tmp_path):
    tree = tiny_tree | {"run": {**tiny_tree["run"], "measure": "none"}}
    one = parse_config(tree | {"optim": {"lr": 0.1, "epochs": 2}}, origin="test")
    other = parse_config(tree | {"optim": {"lr": 0.02, "weight_decay": 0.01, "epochs": 2}}, origin="test")
    parent, child, none = (FolderStore(tmp_path / name) for name in ("parent", "child", "none"))
    assert _train(other, child, pause_after=1) == [(1, 1)], "an epoch is committed when it is told of"
    _train(one, parent, pause_after=1)
    assert copy_newest(parent, child, "driver", print) == Position(epoch=1, offset=0, step=4)
    for store in (parent, child):
        assert [epoch for epoch, _ in _train(other, store)] == [1, 2]
    theirs, ours = (checkpoints.load(store, checkpoints.committed(store)[-1]) for store in (parent, child))
    for part in checkpoints.PARTS:
        mine = getattr(ours, part)
        assert all(torch.equal(mine[name], value) for name, value in getattr(theirs, part).items())
    with pytest.raises(ServiceError, match="no checkpoint any more"):
        copy_newest(none, child, "driver", print)
    claim(child, "another driver")
    with pytest.raises(Fenced):
        copy_newest(parent, child, "driver", print)


def test_a_damaged_checkpoint_is_not_copied(tiny_tree, tmp_path):
    parent, child = FolderStore(tmp_path / "parent"), FolderStore(tmp_path / "child")
    _train(parse_config(tiny_tree | {"optim": {"epochs": 2}}, origin="test"), parent, pause_after=1)
    (model,) = (tmp_path / "parent").glob("*/model.safetensors")
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ServiceError, match="whole"):
        copy_newest(parent, child, "driver", print)
    assert child.keys("") == []
