"""Events as Ray Tune sends them, with its own trials: what the ledger, MLflow and the person are told."""

import queue
import threading

import pytest
from ray.exceptions import RayTaskError
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from pipelines.errors import Fenced, ServiceError
from pipelines.search.budget import Budget
from pipelines.search.conductor import Conductor
from pipelines.search.ledger import Ledger
from pipelines.search.standing import Standings
from pipelines.search.trial import FAILED, Labelled

EPOCHS, STEPS = 9, 90


class Told(list):
    """In the place of what has methods only: keeps who called which, and with what."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.append((name, *args, *kwargs.values()))

    def of(self, name):
        return [call[1:] for call in self if call[0] == name]


class Stage:
    """A stage of a search without Ray: a conductor, and around it what it tells and is told by."""

    def __init__(self, config, ledger, folder):
        self.ledger, self.children, self.live, self.ended = ledger, Told(), Told(), []
        self.board = queue.Queue(100)  # as Ray's own
        self._folder = folder
        self.standings = Standings(
            ledger, Budget(config.tune, ledger), "search", limit=16, epochs=EPOCHS, objective="top1"
        )
        self.conductor = Conductor(
            config,
            ledger,
            self.children,
            self.live,
            self.standings,
            board=self.board,
            epochs=EPOCHS,
            steps=STEPS,
            hang_after=60,
            scheduler="asha",
            ended=self.ended.append,
        )

    def started(self, **values):
        """One of Ray Tune's trials, of the next number, that has started."""
        record = self.ledger.draw(values or {"leak": 0.5}, "search")
        storage = StorageContext(str(self._folder), experiment_dir_name="search", trial_dir_name=f"t{record.number}")
        trial = Trial("stub", config={"number": record.number}, stub=True, storage=storage)
        trial.init_local_path()
        self("on_trial_start", trial)
        return trial

    def __call__(self, event, trial=None, **more):
        """An event, and the end of the step in which it comes."""
        about = {} if trial is None else {"trial": trial}
        getattr(self.conductor, event)(iteration=1, trials=[], **about, **more)
        self.conductor.on_step_end(iteration=1, trials=[])

    def report(self, trial, epoch, **metrics):
        result = {"epoch": epoch, "top1": epoch / 10, "training_iteration": epoch, "pid": 7, "done": False} | metrics
        trial.update_last_result(result)
        self("on_trial_result", trial, result=result)

    def tell(self, number, **item):
        Labelled(self.board, number).put(item)

    def deliver(self):
        """As the board's thread does."""
        while not self.board.empty():
            self.conductor.take(self.board.get())


@pytest.fixture
def stage(searched, ledger, tmp_path, monkeypatch):
    # of a Ray that runs
    monkeypatch.setattr("ray.train._internal.storage._get_ray_train_session_dir", lambda: str(tmp_path / "session"))
    stage = Stage(searched(), ledger, tmp_path)
    yield stage
    stage.conductor.finish()


def _error(cause):
    return RayTaskError("train", f"Traceback:\n  File x\n{cause}\n", ValueError(cause), pid=1, ip="127.0.0.1")


def test_a_trial_that_reaches_its_last_epoch_is_finished(stage):
    trial = stage.started(leak=0.25)
    for epoch in range(1, EPOCHS + 1):
        stage.report(trial, epoch)
    stage("on_trial_complete", trial)
    stage.deliver()
    record = stage.ledger.trials[1]
    assert (record.state, record.cause, record.attempts) == ("finished", "", 1)
    assert [metrics["epoch"] for metrics in record.epochs] == list(range(1, EPOCHS + 1))
    assert record.epochs[0].keys() == {"epoch", "top1", "seconds"}, "without what Ray adds"
    ((number, config, values, run_id),) = stage.children.of("open")
    assert (number, config.name, config.model.neuron.leak, values, run_id) == (
        1,
        "toy.trial-0001",
        0.25,
        {"leak": 0.25},
        "",
    )
    assert stage.children.of("close") == [(1, "finished", "")]
    assert stage.live.of("say") == [("trial 1 finished (leak 0.25) top1 0.9",)]
    stage.conductor.finish()
    assert [record.number for record in stage.ended] == [1]


def test_epochs_say_when_in_the_search_they_ended(stage, searched):
    now = [50.0]
    stage.conductor._ledger = stage.ledger = Ledger(stage.ledger._store, stage.ledger.search, clock=lambda: now[0])
    trial = stage.started()
    for epoch in (1, 2):
        now[0] += 1.5
        stage.report(trial, epoch)
    assert [metrics["seconds"] for metrics in stage.ledger.trials[1].epochs] == [1.5, 3.0]


def test_a_trial_that_the_scheduler_ends_is_pruned_and_says_by_whom(stage):
    trial = stage.started()
    for epoch in (1, 2):
        stage.report(trial, epoch)
    stage("on_trial_complete", trial)
    stage.deliver()
    assert (stage.ledger.trials[1].state, stage.ledger.trials[1].cause) == ("pruned", "ended by asha after epoch 2")
    assert stage.children.of("close") == [(1, "pruned", "ended by asha after epoch 2")]
    assert stage.live.of("say") == [("trial 1 pruned (leak 0.5) top1 0.2: ended by asha after epoch 2",)]


def test_a_failure_for_good_is_a_report(stage):
    trial = stage.started()
    stage.report(trial, 1)
    stage("on_trial_result", trial, result={FAILED: "NotFinite: the loss is nan", "training_iteration": 2})
    stage("on_trial_complete", trial)
    stage.deliver()
    record = stage.ledger.trials[1]
    assert (record.state, record.cause, len(record.epochs)) == ("failed", "NotFinite: the loss is nan", 1)
    assert stage.children.of("close") == [(1, "failed", "NotFinite: the loss is nan")]
    assert stage.live.of("say") == [("trial 1 failed (leak 0.5): NotFinite: the loss is nan",)]


def test_a_lost_trial_starts_again_and_says_why(stage):
    trial = stage.started()
    stage.report(trial, 1)
    trial.handle_error(_error("ValueError: of the first attempt"))
    stage("on_trial_recover", trial)
    stage("on_trial_start", trial)
    assert (stage.ledger.trials[1].state, stage.ledger.trials[1].attempts) == ("running", 2)
    assert stage.live.of("say") == [("trial 1 starts again: ValueError: of the first attempt",)]
    trial.handle_error(_error("ValueError: of the second"))
    stage("on_trial_error", trial)
    stage.deliver()
    assert (stage.ledger.trials[1].state, stage.ledger.trials[1].cause) == ("failed", "ValueError: of the second")
    assert stage.children.of("close") == [(1, "failed", "ValueError: of the second")]


def test_a_trial_without_a_reason_says_that(stage):
    stage("on_trial_error", stage.started())
    assert stage.ledger.trials[1].cause == "no reason is known"


def test_a_trial_that_hangs_is_ended_and_named(stage, monkeypatch):
    killed = []
    monkeypatch.setattr("pipelines.search.signs.ray.kill", killed.append)
    now = [0.0]
    monkeypatch.setattr(stage.conductor._signs, "_clock", lambda: now[0])
    trial = stage.started()
    stage.tell(1, actor="the actor")
    stage.tell(1, pulse={"rank": 0, "phase": "load", "since": 10.0})
    stage.deliver()
    now[0] = 51.0
    stage("on_step_begin")
    trial.handle_error(_error("Worker exit detail: killed by ray.kill"))
    stage("on_trial_error", trial)
    assert killed == ["the actor"]
    assert stage.ledger.trials[1].cause == "hung: nothing new for 61 s in its phase 'load'"


def test_rows_that_wait_on_the_board_come_before_the_end_of_the_run(stage):
    trial = stage.started()
    stage.report(trial, EPOCHS)
    for step in range(5):
        stage.tell(1, metrics={"loss": 1.0}, step=step)
    stage("on_trial_complete", trial)
    stage.deliver()
    assert [call[0] for call in stage.children] == ["open", *["log"] * 5, "close"]
    assert stage.children.of("log") == [(1, {"loss": 1.0}, step) for step in range(5)]


def test_a_run_is_closed_where_the_board_takes_nothing(stage, monkeypatch):
    monkeypatch.setattr("pipelines.search.conductor._BOARD_WAIT_S", 0.01)
    monkeypatch.setattr("pipelines.search.conductor.Full", queue.Full)  # what Ray's own is made of
    trial = stage.started()
    for step in range(100):
        stage.tell(1, metrics={"loss": 1.0}, step=step)
    stage("on_trial_complete", trial)
    assert stage.children.of("close") == [(1, "pruned", "ended by asha after epoch 0")]


def test_what_trials_tell_goes_to_whom_it_concerns(stage):
    stage.started()
    stage.tell(1, loss=0.5, images_per_second=100.0, eta=60.0)
    stage.tell(1, say="epoch 1: val top1 0.5")
    stage.tell(1, tag="agmm.checkpoint", value="there")
    stage.tell(1, failed="rank 0: of workers of its own")
    stage.deliver()
    (row,) = stage.standings.now().rows
    assert (row.speed, row.eta) == (100.0, 60.0)
    assert stage.children.of("close") == []


def test_what_the_budget_cuts_short_ends_here_and_stays_to_be_gone_on_with(stage):
    """Ray says nothing of trials that it ends with the search: one that runs, one whose last report ended it."""
    running, finished, failed, over = (stage.started() for _ in range(4))
    stage.report(over, EPOCHS)
    stage("on_trial_complete", over)
    stage.report(running, 2)
    stage.report(finished, EPOCHS)
    stage("on_trial_result", failed, result={FAILED: "UserError: no"})
    drawn = stage.ledger.draw({"leak": 0.1}, "search")
    stage.conductor.end_cut_short(stage.ledger.of("search"))
    stage.deliver()
    states = [record.state for record in stage.ledger.trials.values()]
    assert states == ["running", "finished", "failed", "finished", "drawn"]
    assert sorted(stage.children.of("close")) == [
        (1, "running", "the budget was used up after epoch 2"),
        (2, "finished", ""),
        (3, "failed", "UserError: no"),
        (4, "finished", ""),
        (5, "drawn", "the budget was used up after epoch 0"),
    ]
    assert [record.number for record in stage.ledger.unfinished("search")] == [1, drawn.number]


def test_trials_that_ended_without_mlflow_get_their_runs(stage):
    for number, run_id in ((1, ""), (2, "has one")):
        stage.ledger.draw({"leak": 0.5}, "search")
        stage.ledger.start(number, run_id)
        stage.ledger.record(number, {"epoch": 1, "top1": 0.5, "loss": 2.0, "flips": 0.1})
        stage.ledger.record(number, {"epoch": 3, "top1": 0.6}, ends_as="pruned", cause="asha")
    stage.ledger.draw({"leak": 0.5}, "search")
    stage.conductor.make_up(stage.ledger.of("search"))
    assert [number for number, *_ in stage.children.of("open")] == [1]
    assert stage.children.of("log") == [(1, {"val/top1": 0.5, "val/loss": 2.0}, 10), (1, {"val/top1": 0.6}, 30)]
    assert stage.children.of("close") == [(1, "pruned", "asha")]


class _Broken:
    """A store that is away, or another driver's."""

    def __init__(self, store, error):
        self._store, self._error = store, error
        self.uri = store.uri

    def put(self, source, key):
        raise self._error

    def __getattr__(self, name):
        return getattr(self._store, name)


@pytest.mark.parametrize("error", [ServiceError("S3 is away"), Fenced("overtaken"), KeyError("a bug")])
@pytest.mark.parametrize("event", ["on_trial_start", "on_trial_result", "on_trial_complete", "on_trial_error"])
def test_a_store_that_fails_ends_the_search_as_it_is(stage, event, error):
    """Ray Tune would wrap it, or start a trial again that has ended: the step's end raises it, as it was."""
    trial = stage.started()
    stage.ledger._store = _Broken(stage.ledger._store, error)
    more = {"result": {"epoch": 1, "top1": 0.5}} if event == "on_trial_result" else {}
    getattr(stage.conductor, event)(iteration=1, trials=[], trial=trial, **more)
    stage.conductor.on_trial_complete(iteration=1, trials=[], trial=trial)  # nothing more is done
    with pytest.raises(type(error)) as raised:
        stage.conductor.on_step_end(iteration=1, trials=[])
    assert raised.value is error
    assert stage.children.of("close") == []
    assert stage.ledger.trials[1].state == "running"


def test_an_interrupt_is_not_put_off(stage, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    trial = stage.started()
    monkeypatch.setattr(stage.ledger, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.conductor.on_trial_result(iteration=1, trials=[], trial=trial, result={"epoch": 1})


def test_rooms_of_workers_are_given_back_once(stage, monkeypatch):
    given = []
    monkeypatch.setattr("pipelines.search.conductor.remove_placement_group", given.append)
    trial, other = stage.started(), stage.started()
    stage.tell(1, room="first")
    stage.tell(2, room="of another")
    stage.deliver()
    stage("on_trial_recover", trial)
    assert given == ["first"]
    stage("on_trial_start", trial)
    stage.tell(1, room="second")
    stage.deliver()
    stage("on_trial_complete", trial)
    assert given == ["first", "second"]
    stage.tell(1, room="too late")  # told before it was ended
    stage.deliver()
    assert given == ["first", "second", "too late"]
    stage.conductor.end_cut_short(stage.ledger.of("search"))
    stage.tell(2, room="of one that was cut short")
    stage.deliver()
    assert given[3:] == ["of another", "of one that was cut short"]
    assert other.config["number"] == 2


def test_what_is_done_for_the_ended_does_not_hold_the_loop(stage):
    go_on, done = threading.Event(), []
    stage.conductor._ended = lambda record: (go_on.wait(30), done.append(record.number))
    stage("on_trial_complete", stage.started())
    assert done == []
    go_on.set()
    stage.conductor.finish()
    assert done == [1]
