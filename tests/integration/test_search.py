"""Searches over real trainings: faults in trials, a killed driver, trials with workers of their own, a proxy."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import psutil
import pytest
import yaml

from pipelines.recipe import load_recipe
from pipelines.registry import load_model
from pipelines.tracking import runs as tracking

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
TRIALS, CRASHES, HANGS, NAN_LR = 12, 3, 5, 1e30


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    def write(**sections):
        path = tmp_path / "recipe.yaml"
        tree = tiny_tree | {"run": {**tiny_tree["run"], "measure": "none"}, "checkpoint": {"uri": str(tmp_path / "c")}}
        path.write_text(yaml.safe_dump(tree | sections))
        return path

    return write


@contextmanager
def _search(recipe, *options, **environment):
    import os

    command = [sys.executable, "-m", "pipelines.cli", "tune", str(recipe), "--json", *options]
    home = {"AGMM_HOME": str(recipe.parent / "home")}
    with (recipe.parent / "stderr").open("ab") as log:
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=os.environ | home | environment)
        try:
            yield driver
        finally:
            driver.kill()
            driver.wait()
            driver.stdout.close()


def _result(recipe, *options, **environment):
    with _search(recipe, *options, **environment) as driver:
        out, _ = driver.communicate(timeout=600)
        assert driver.returncode == 0, (recipe.parent / "stderr").read_text()[-5000:]
        return json.loads(out)


def _children(recipe):
    client = tracking.connect(load_recipe(str(recipe)).tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name("agmm").experiment_id])
    return {int(run.data.tags["agmm.trial"]): run for run in runs if "agmm.trial" in run.data.tags}, client


def test_a_search_ends_with_a_recipe_and_a_registered_model(recipe, tmp_path):
    path = recipe(tune={"trials": 2, "scheduler": "none", "concurrent": 2})
    result = _result(path, "--out", str(tmp_path / "winner.yaml"))
    assert [trial["state"] for trial in result["trials"]] == ["finished", "finished"]
    best = result["best"]
    assert best["top1"] == max(trial["top1"] for trial in result["trials"])
    winner = load_recipe(str(tmp_path / "winner.yaml"))
    assert winner.model.neuron.leak == best["values"]["leak"]
    model = load_model(best["model"], str(winner.tracking.uri))
    assert model.card.run_id == best["run_id"]
    assert model.card.metrics["top1"] == best["top1"]
    children, client = _children(path)
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {result["run_id"]}
    for run in children.values():
        epochs = len(client.get_metric_history(run.info.run_id, "val/top1"))
        assert (run.info.status, epochs) == ("FINISHED", 4)
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    with _search(path, "--resume") as driver:  # with no more trials there is nothing to do
        assert driver.wait(timeout=120) == 2
    assert "nothing more is asked of it" in (tmp_path / "stderr").read_text()


@pytest.mark.slow
def test_a_search_that_has_finished_goes_on_with_more_trials(recipe):
    path = recipe(tune={"trials": 2, "scheduler": "none", "concurrent": 2})
    first = _result(path)
    more = _result(path, "--resume", "--trials", "3")
    assert more["run_id"] == first["run_id"]
    assert more["trials"][:2] == first["trials"]
    assert [trial["state"] for trial in more["trials"]] == ["finished"] * 3


@pytest.mark.slow
def test_a_crash_a_hang_a_nan_and_a_killed_driver_lose_no_trial(recipe, tmp_path):
    """The driver is killed after some trials; the same command with --resume ends with all of them in their states."""
    space = {"lr": {"choice": [0.05, 0.1, NAN_LR]}}
    settings = {"trials": TRIALS, "space": space, "scheduler": "none", "concurrent": 2, "hang_after": 30, "retries": 1}
    path = recipe(tune=settings, seed=_seed_with_one_nan(space))
    faults = {"AGMM_FAULTS": f"trial.{CRASHES}.report=crash, trial.{HANGS}.report=sleep:100000"}
    with _search(path, **faults) as driver:
        ended = _wait_until(lambda: len(_ended(tmp_path)) >= 4 and _ended(tmp_path), 400)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = _records(tmp_path)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [each.name() for each in alive if not _is_left_by_ray(each)]
    for each in alive:
        each.kill()
    result = _result(path, "--resume", **faults)
    trials = {trial["number"]: trial for trial in result["trials"]}
    assert sorted(trials) == list(range(1, TRIALS + 1))
    for number in ended:  # none that had ended was trained again
        assert _records(tmp_path)[number] == before[number] | {"run_id": _records(tmp_path)[number]["run_id"]}
    (nan,) = [number for number, trial in trials.items() if trial["values"]["lr"] == NAN_LR]
    assert {number: trial["state"] for number, trial in trials.items()} == {
        number: "failed" if number in (CRASHES, HANGS, nan) else "finished" for number in trials
    }
    assert "process was lost" in trials[CRASHES]["cause"]
    assert trials[HANGS]["cause"].startswith("hung")
    assert trials[nan]["cause"].startswith("NotFinite")
    children, _ = _children(path)
    assert {number: run.info.status for number, run in children.items()} == {
        number: "FAILED" if trial["state"] == "failed" else "FINISHED" for number, trial in trials.items()
    }
    straight = {number: trial["top1"] for number, trial in trials.items()}
    assert all(straight[number] is not None for number in straight if trials[number]["state"] == "finished")


def _seed_with_one_nan(space):
    """A seed whose draws have the learning rate that gives NaN once, in a trial that nothing else happens to."""
    from pipelines.config.search import SpaceConfig
    from pipelines.search.searchers import random_draw

    for seed in range(1000):
        draw = random_draw(SpaceConfig.model_validate(space), seed)
        nan = [number for number in range(1, TRIALS + 1) if draw(number)["lr"] == NAN_LR]
        if len(nan) == 1 and nan[0] not in (CRASHES, HANGS):
            return seed
    raise AssertionError


def _is_left_by_ray(process):
    return process.name().endswith("Agent")  # two of Ray's own outlive a killed driver


def _records(tmp_path):
    files = [json.loads(path.read_text()) for path in (tmp_path / "c").glob("*/trials/*.json")]
    return {record["number"]: record for record in files}


def _ended(tmp_path):
    return {number for number, record in _records(tmp_path).items() if record["state"] not in ("drawn", "running")}


def _wait_until(holds, seconds):
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_trials_with_workers_of_their_own_leave_none_behind(recipe, tiny_tree):
    """Trials that asha ends early give their workers' places to the next ones."""
    run = {**tiny_tree["run"], "workers": 2, "measure": "none"}
    path = recipe(run=run, tune={"trials": 4, "concurrent": 1, "reduction": 2})
    result = _result(path)
    assert len(result["trials"]) == 4
    assert {trial["state"] for trial in result["trials"]} <= {"finished", "pruned"}
    assert all(len(trial["values"]) == 3 for trial in result["trials"])


@pytest.mark.slow
def test_a_proxy_sorts_and_the_best_are_trained_in_full(recipe):
    proxy = {"share": 0.5, "epochs": 2, "top": 2}
    path = recipe(tune={"trials": 4, "concurrent": 2, "proxy": proxy, "objectives": ["top1", "sops"]})
    result = _result(path, "--proxy")
    stages = [trial["stage"] for trial in result["trials"]]
    assert stages == ["proxy"] * 4 + ["full"] * 2
    assert result["proxy"]["n"] == 2
    assert result["best"]["stage"] == "full"
    assert result["best"]["sops"] > 0
    assert set(result["front"]) <= {5, 6}


@pytest.mark.slow
@pytest.mark.parametrize("concurrent", [2, 4])
def test_the_worst_of_a_population_go_on_from_the_weights_of_the_best(recipe, tmp_path, concurrent):
    settings = {"trials": 4, "scheduler": "pbt", "concurrent": concurrent, "space": {"lr": {"loguniform": [0.01, 0.2]}}}
    path, files = recipe(tune=settings, checkpoint={"uri": str(tmp_path / "c"), "keep": 50}), {}
    if concurrent == 2:
        _kill_after_a_mutation(path, tmp_path)
        _read_manifests(tmp_path, files)
    before = _records(tmp_path)
    with _search(path, "--out", str(tmp_path / "winner.yaml"), *(["--resume"] if before else [])) as driver:
        family = set()
        _wait_until(lambda: _read_manifests(tmp_path, files, driver, family) or driver.poll() is not None, 600)
        result = json.loads(driver.communicate(timeout=60)[0])
        assert driver.returncode == 0
    assert not psutil.wait_procs(family, timeout=60)[1]
    records = _records(tmp_path)
    assert {record["state"] for record in records.values()} == {"finished"}
    assert [[each["epoch"] for each in record["epochs"]] for record in records.values()] == [[1, 2, 3, 4]] * 4
    mutations = _mutations(records)
    assert len(mutations) == 3 if concurrent == 4 else len(mutations) in (2, 3)
    assert [each for each in _mutations(before) if each not in mutations] == []
    for child, mutation in mutations:
        assert mutation["parent"] != child
        step = f"step-{4 * mutation['epoch']:09d}"
        theirs = [each for (trial, name), each in files.items() if trial == mutation["parent"] and name.endswith(step)]
        ours = [each for (trial, name), each in sorted(files.items()) if trial == child and name.endswith(step)]
        assert ours[-1] in theirs, "the newest of this step is the parent's, optimiser and all"
        assert ours[0] not in theirs, "what the trial had trained itself"
        assert mutation["values"] != records[child]["values"]
    head = (tmp_path / "winner.yaml").read_text()
    assert ("# Changed:" in head) == bool(records[result["best"]["number"]]["mutations"])


def _kill_after_a_mutation(path, tmp_path):
    with _search(path) as driver:
        _wait_until(lambda: _mutations(_records(tmp_path)), 400)
        time.sleep(2)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(signal.SIGKILL)
        driver.communicate()
    for each in psutil.wait_procs(family, timeout=60)[1]:
        assert _is_left_by_ray(each)
        each.kill()


def _mutations(records):
    return [(number, each) for number, record in records.items() for each in record["mutations"]]


def _read_manifests(tmp_path, files, driver=None, family=None):
    """Collect the hashes of all checkpoints before they are removed, and the driver's processes."""
    if driver is not None:
        with suppress(psutil.NoSuchProcess):
            family.update(psutil.Process(driver.pid).children(recursive=True))
    for path in (tmp_path / "c").glob("*/trial-*/*/manifest.json"):
        with suppress(OSError, ValueError):
            digests = json.loads(path.read_text())["sha256"]
            files[int(path.parts[-3][-4:]), path.parts[-2]] = {
                name: digests[f"{name}.safetensors"] for name in ("model", "optimizer", "signs")
            }
