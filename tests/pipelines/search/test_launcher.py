"""What surrounds Ray Tune in a search: its stages, what is left behind, and what a failure comes out as."""

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.errors import Fenced, ServiceError, TrainingFailed, UserError
from pipelines.on_ray.board import Board
from pipelines.on_ray.driver import ray_storage
from pipelines.search import launcher, stage
from pipelines.search.stage import Search
from pipelines.search.trial import address_of
from pipelines.storage import open_store


@pytest.fixture
def search(searched, ledger, tmp_path):
    """A function from the `tune` section to a search that has begun."""

    def make(**tune):
        config = searched(tune, checkpoint={"uri": str(tmp_path / "checkpoints")})
        said = []
        data = SimpleNamespace(config=config)
        return Search("theid", data, ledger, "session", None, Board(), said.append), said

    return make


def _trial(ledger, top1=None, state="finished", stage="search", **metrics):
    number = ledger.draw({"leak": ledger.next_number / 10}, stage).number
    if top1 is not None:
        ledger.record(number, {"epoch": 1, "top1": top1} | metrics)
    if state:
        ledger.end(number, state)
    return number


def _files(search, number):
    store = open_store(f"{search.config.checkpoint.uri}/{address_of(search.id, number)}")
    return store.keys("")


def _checkpoint(search, number):
    store = open_store(f"{search.config.checkpoint.uri}/{address_of(search.id, number)}")
    store.create("claims/0001", b"{}")
    store.create("attempt-0001-step-000000001/COMMITTED", b"x")


def test_checkpoints_of_the_best_the_front_and_the_unfinished_stay(search):
    search, said = search(objectives=["top1", "sops"])
    one = _trial(search.ledger, 0.9, sops=10.0)
    two = _trial(search.ledger, 0.5, sops=1.0)
    worse = _trial(search.ledger, 0.4, sops=2.0)
    pruned = _trial(search.ledger, 0.95, "pruned")
    failed = _trial(search.ledger, None, "failed")
    running = _trial(search.ledger, 0.1, None)
    for number in (one, two, worse, pruned, failed, running):
        _checkpoint(search, number)
    leftovers = stage._Leftovers(search, "search")
    leftovers.remove(search.ledger.of("search"))
    assert [number for number in range(1, 7) if _files(search, number)] == [one, two, running]
    _checkpoint(search, pruned)  # of a process that was ended as it wrote
    leftovers.remove(search.ledger.of("search"))
    assert _files(search, pruned)
    leftovers.remove(search.ledger.of("search"), again=True)
    assert not _files(search, pruned)
    better = _trial(search.ledger, 0.99, sops=1.0)
    _checkpoint(search, better)
    leftovers.remove(search.ledger.of("search"))
    assert [number for number in range(1, 8) if _files(search, number)] == [running, better]
    assert said == []


def test_nobody_goes_on_from_a_proxy(search):
    search, _ = search()
    number = _trial(search.ledger, 0.9, stage="proxy")
    _checkpoint(search, number)
    stage._Leftovers(search, "proxy").remove(search.ledger.of("proxy"))
    assert not _files(search, number)


def test_checkpoints_that_cannot_be_removed_end_no_search(search, monkeypatch):
    search, said = search()
    for state in ("failed", "pruned"):
        _checkpoint(search, _trial(search.ledger, None, state))
    works, left = stage.open_store, [1]

    def refused(uri):
        if left[0]:
            left[0] -= 1
            raise ServiceError("S3 is away")
        return works(uri)

    monkeypatch.setattr(stage, "open_store", refused)
    leftovers = stage._Leftovers(search, "search")
    leftovers.remove(search.ledger.of("search"))
    assert said == ["checkpoints that nobody needs any more were not removed: S3 is away"]
    leftovers.remove(search.ledger.of("search"))
    assert not _files(search, 1)
    assert not _files(search, 2)


def test_what_ray_kept_of_the_search_goes_and_of_others_stays(search, tmp_path):
    search, said = search()
    stage._remove_folders(search)  # none is there
    place = Path(ray_storage()["storage_path"])
    for name in ("theid-8f3a", "theid-1234", "theid-trial-0001", "other-8f3a"):
        (place / name / "t1").mkdir(parents=True)
        (place / name / "tuner.pkl").touch()
    stage._remove_folders(search)
    assert [path.name for path in place.iterdir()] == ["other-8f3a"]
    assert said == []


def test_folders_that_cannot_be_removed_end_no_search(search, monkeypatch):
    search, said = search()
    place = Path(ray_storage()["storage_path"])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()  # no folder
    stage._remove_folders(search)
    (line,) = said
    assert line.startswith(f"what Ray kept of the search stays at {place}/theid*: ")


@pytest.mark.parametrize(
    "error", [ServiceError("S3 is away."), Fenced("overtaken"), UserError("no"), KeyboardInterrupt()]
)
def test_a_service_that_fails_says_how_to_go_on(error):
    with pytest.raises(type(error)) as raised, stage._resumable():
        raise error
    expected = "S3 is away. The search keeps what its trials have reached: go on with --resume."
    assert str(raised.value) == (expected if type(error) is ServiceError else str(error))


def test_a_stage_that_fails_leaves_no_thread(search, monkeypatch):
    search, _ = search()
    search.data.manifest = SimpleNamespace(splits={"train": SimpleNamespace(count=64)})

    class Broken:
        def fit(self):
            raise ServiceError("S3 is away.")

    monkeypatch.setattr(stage, "_tuner", lambda *_: Broken())
    with pytest.raises(ServiceError, match="--resume"):
        stage.run_stage(search, "search", search.config, search.tune, None, 4)
    assert not [each for each in threading.enumerate() if each.name.startswith("ended trials")]


@pytest.mark.parametrize(
    ("run", "resources", "at_once"),
    [({"workers": 1}, {"cpu": 1.0}, 8), ({"workers": 2}, {"cpu": 0.0, "memory": 1.0}, 4)],
)
def test_trials_take_the_room_that_they_train_in(searched, monkeypatch, run, resources, at_once):
    config = searched({}, run=run | {"device": "cpu"})
    monkeypatch.setattr("pipelines.search.stage.device_of", lambda _: "cpu")
    assert stage._resources(config) == resources
    assert stage._room(config, {"CPU": 8.0}) == at_once
    assert stage._room(config, {}) == 1
    monkeypatch.setattr("pipelines.search.stage.device_of", lambda _: "cuda")
    assert stage._room(config, {"CPU": 8.0, "GPU": 2.0}) == 2 // config.run.most_workers


@pytest.fixture
def stages(monkeypatch):
    """Stages that are asked for, in the place of those that would train."""
    calls = []

    def run_stage(search, name, config, tune, draw, limit):
        calls.append((name, config, tune, draw, limit))

    monkeypatch.setattr(launcher, "run_stage", run_stage)
    return calls


def test_without_a_proxy_there_is_one_stage(search, stages):
    search, _ = search(trials=7)
    assert launcher._train(search, proxy=False) == "search"
    ((name, config, tune, _, limit),) = stages
    assert (name, config, tune.scheduler, limit) == ("search", search.config, "asha", 7)


def test_the_best_of_a_proxy_are_trained_in_full_to_the_end(search, stages):
    search, _ = search(trials=7, proxy={"share": 0.5, "epochs": 2, "top": 2})
    for top1, state in ((0.5, "finished"), (0.9, "pruned"), (0.7, "finished"), (0.6, "finished")):
        _trial(search.ledger, top1, state, stage="proxy")
    assert launcher._train(search, proxy=True) == "full"
    (cheap, full) = stages
    assert (cheap[0], cheap[1].data.share, cheap[1].optim.epochs, cheap[2].scheduler, cheap[4]) == (
        "proxy",
        0.5,
        2,
        "asha",
        7,
    )
    assert (full[0], full[1], full[2].scheduler, full[4]) == ("full", search.config, "none", 2)
    assert full[3](5) == {"leak": 0.3}


def test_a_proxy_of_which_nothing_finished_says_why_itself(search, stages):
    search, _ = search()
    _trial(search.ledger, None, "failed", stage="proxy")
    assert launcher._train(search, proxy=True) == "proxy"
    assert [name for name, *_ in stages] == ["proxy"]


def test_objectives_have_what_they_need_measured(searched):
    assert launcher._searchable(searched({"objectives": ["top1", "sops"]})).run.operations == "epoch"
    assert launcher._searchable(searched()).run.operations == searched().run.operations


@pytest.mark.parametrize("ended", [KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("failure", ["", "The Ray head is gone", "Fenced: overtaken"])
def test_the_boards_own_interrupt_is_told_from_a_persons(searched, monkeypatch, ended, failure):
    monkeypatch.setattr(launcher.ray_driver, "connected", lambda **_: nullcontext())
    monkeypatch.setattr(launcher.board, "heard", lambda *_: nullcontext())
    monkeypatch.setattr(launcher, "head_watched", lambda _: nullcontext())
    expected = Fenced if failure.startswith("Fenced") else TrainingFailed if failure else KeyboardInterrupt
    with pytest.raises(expected), launcher._ray(searched(), Board(failure=failure), lambda _: None):
        raise ended
