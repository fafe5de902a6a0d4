"""What comes out of a search, with a real ledger, MLflow and registry, and trials that are made up."""

import json
import math

import matplotlib as mpl
import pytest

from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.config import parse_config
from pipelines.data.manifest import load_manifest
from pipelines.driver import Prepared
from pipelines.errors import ServiceError
from pipelines.network import build_network
from pipelines.recipe import load_recipe
from pipelines.registry import load_model
from pipelines.search.ledger import Ledger
from pipelines.search.results import Outcome, conclude
from pipelines.search.searchers import random_draw
from pipelines.search.space import applied
from pipelines.storage import open_store
from pipelines.tracking import runs as tracking
from pipelines.tracking.lifecycle import Opened

mpl.use("Agg")


class Notes:
    """In the place of the search's journal."""

    def __init__(self):
        self.rows, self.tags = [], {}

    def log(self, row, step):
        self.rows.append((row, step))

    def tag(self, key, value):
        self.tags[key] = value


@pytest.fixture
def made(tiny_tree, tiny_data, client, tmp_path):
    """A function from the `tune` section to the outcome of a search of which nothing has happened."""

    def make(stage="search", **tune):
        config = parse_config(tiny_tree | {"tune": tune}, origin="tiny")
        run_id = tracking.create_run(client, config)
        ledger = Ledger.create(open_store(str(tmp_path / "ledger")), config, proxy=stage == "full")
        data = Prepared(config, tiny_data, load_manifest(tiny_data))
        return Outcome(config, data, ledger, stage, Opened(run_id, Notes()))

    return make


def _trial(client, outcome, top1s, state="finished", cause="", stage=None, values=None, **metrics):
    """A trial that has reached these accuracies."""
    ledger = outcome.ledger
    draw = random_draw(outcome.tune.space, 0)
    number = ledger.draw(values or draw(ledger.next_number), stage or outcome.stage).number
    ledger.start(number, tracking.create_run(client, outcome.config, {"agmm.trial": str(number)}))
    for epoch, top1 in enumerate(top1s, 1):
        ledger.record(number, {"epoch": epoch, "top1": top1, "seconds": 10.0 * epoch - number} | metrics)
    return ledger.end(number, state, cause)


def _train(outcome, record):
    """What the trial's training leaves in its store."""
    config = applied(outcome.data.config, record.values)
    tensors = checkpoints.model_tensors(build_network(config.model))
    metrics, tree = {"top1": record.epochs[-1]["top1"]}, config.model_dump(mode="json")
    end = Position(epoch=4, offset=0, step=16)
    attempt = claim(open_store(outcome.address(record)), "a driver")
    checkpoints.save(attempt, Checkpoint(end, tensors, {}, {}, tree, metrics, {}, "0.1.0+gabc"))


def _logged(client, run_id, folder=None):
    return {file.path for file in client.list_artifacts(run_id, folder)}


def test_a_search_ends_with_a_recipe_a_model_and_its_figures(client, made, tmp_path):
    outcome = made(objectives=["top1", "sops"], grace=1, reduction=2)
    space = outcome.tune.space
    for number in range(1, 13):
        _trial(client, outcome, [number / 50, number / 40, number / 30, number / 20], sops=1e6 * number, loss=1.0)
    best = _trial(client, outcome, [0.1, 0.3, 0.8, 0.9], sops=20e6, images_per_second=1234.5)
    _trial(client, outcome, [0.01], "pruned", "ended by asha after epoch 1", sops=1.0)
    _trial(client, outcome, [], "failed", "NotFinite: nan\nand more")
    _train(outcome, best)
    out, said = tmp_path / "winner.yaml", []
    result = conclude(client, outcome, out, said.append)

    found = load_recipe(str(out))
    assert (found.name, found.tune) == ("tiny_tuned", None)
    assert found.model == applied(outcome.config, best.values).model
    head = [line for line in out.read_text().splitlines() if line.startswith("#")]
    assert head[0].startswith("# tiny, with leak ")
    assert head[1] == "# Run:      agmm train winner.yaml"
    assert head[2].startswith("# Found:    agmm tune tiny: random, asha; trial 13 of 15, 13 of them to the end; ")
    assert (
        head[3]
        == "# Measured: 90.00% top-1, sops 2e+07 operations after 4 epochs (1 seed, as in the search), 1234 images/s."
    )
    assert str(tmp_path) not in "\n".join(head)

    assert json.loads(json.dumps(result)) == result
    row = result["best"]
    assert (row["number"], row["top1"], row["sops"], row["state"]) == (13, 0.9, 20e6, "finished")
    assert row["checkpoint"] == outcome.address(best) == f"{tmp_path}/checkpoints/{outcome.run.id}/trial-0013"
    assert (row["run_id"], result["run_id"], row["recipe"]) == (best.run_id, outcome.run.id, str(out))
    assert [trial["number"] for trial in result["trials"]] == list(range(1, 16))
    assert [trial["top1"] for trial in result["trials"][-2:]] == [0.01, None]
    assert result["front"] == [*range(1, 13), 13]
    assert [(each["rung"], each["later"], each["n"]) for each in result["rungs"]] == [
        (1, 2, 13),
        (1, 4, 13),
        (2, 4, 13),
    ]
    assert result["rungs"][2]["spearman"] == pytest.approx(0.9, abs=0.15)

    figures = {f"figures/{name}.png" for name in FIGURES}
    assert _logged(client, outcome.run.id, "figures") == figures
    assert {"search.json", "winner.yaml"} <= _logged(client, outcome.run.id)
    assert outcome.run.journal.rows == [({"best/top1": 0.9, "best/sops": 20e6}, 15)]
    assert outcome.run.journal.tags["agmm.best"].startswith("trial 13: leak ")
    assert said[0] == f"the winner's recipe: {out}"
    model = load_model(row["model"], client.tracking_uri)
    assert (model.card.run_id, model.card.metrics["top1"]) == (best.run_id, 0.9)
    assert "a search of 15 trials" in model.card.note
    assert outcome.run.id in model.card.note
    assert set(space.drawn) == set(best.values)


FIGURES = ("learning_curves", "anytime", "parallel_coordinates", "importances", "pareto")


@pytest.fixture
def unregistered(monkeypatch):
    """The registry is tried elsewhere."""
    monkeypatch.setattr("pipelines.search.results.registry.publish", lambda *_, **__: "models:/tiny/1")


def test_an_objective_without_a_value_is_left_out(client, made, tmp_path, unregistered):
    outcome = made(objectives=["top1", "flips"])
    _trial(client, outcome, [0.5, 0.6, 0.7, 0.8], flips=math.nan)
    result = conclude(client, outcome, tmp_path / "winner.yaml", lambda _: None)
    assert (result["best"]["flips"], result["front"]) == (None, [])
    assert outcome.run.journal.rows == [({"best/top1": 0.8}, 1)]
    assert "# Measured: 80.00% top-1 after 4 epochs" in (tmp_path / "winner.yaml").read_text()
    json.dumps(result, allow_nan=False)


def test_the_best_so_far_is_in_the_order_of_time(client, made, tmp_path, unregistered, monkeypatch):
    rows = []
    monkeypatch.setattr("pipelines.search.results.search_figures", lambda trials, *_, **__: rows.extend(trials) or {})
    outcome = made()
    _trial(client, outcome, [0.1, 0.2])
    _trial(client, outcome, [0.3], "pruned")
    outcome.ledger.draw({"leak": 0.5}, "search")  # cut short
    conclude(client, outcome, tmp_path / "winner.yaml", lambda _: None)
    assert [row.number for row in rows] == [1, 2]
    assert rows[0].epochs == [{"top1": 0.1, "seconds": 9.0}, {"top1": 0.2, "seconds": 19.0}]


def test_a_proxy_says_how_its_ranks_foretold_the_full_ones(client, made, tmp_path, unregistered):
    outcome = made(stage="full")
    drawn = [random_draw(outcome.tune.space, 0)(number) for number in range(1, 6)]
    for values, top1 in zip(drawn, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        _trial(client, outcome, [top1], stage="proxy", values=values)
    for values, top1 in zip(drawn[:4], (0.6, 0.8, 0.7, 0.9), strict=True):
        _trial(client, outcome, [top1], values=values)
    result = conclude(client, outcome, tmp_path / "winner.yaml", lambda _: None)
    assert result["proxy"] == {"n": 4, "spearman": pytest.approx(0.8), "kendall": pytest.approx(2 / 3)}
    assert result["best"]["number"] == 9
    assert "front" not in result


@pytest.mark.parametrize("stage", ["search", "proxy", "full"])
def test_where_nothing_finished_the_causes_are_named(client, made, tmp_path, stage):
    outcome = made(stage=stage)
    _trial(client, outcome, [0.1], "pruned", "ended by asha after epoch 1")
    _trial(client, outcome, [0.9], "failed", "NotFinite: nan")
    outcome.ledger.draw({"leak": 0.5}, stage)
    out = tmp_path / "winner.yaml"
    with pytest.raises(ServiceError) as raised:
        conclude(client, outcome, out, lambda _: None)
    where = {"search": "", "proxy": " on the proxy", "full": " in full"}[stage]
    lines = str(raised.value).splitlines()
    assert lines[0] == f"No trial has finished{where}, so nothing was found."
    assert lines[1:4] == [
        f"  trial 1{where} pruned: ended by asha after epoch 1",
        f"  trial 2{where} failed: NotFinite: nan",
        f"  trial 3{where} cut short",
    ]
    assert "--resume" in lines[4]
    assert not out.exists()


def test_a_search_without_a_trial_says_so(client, made, tmp_path):
    with pytest.raises(ServiceError, match="no trial was drawn"):
        conclude(client, made(), tmp_path / "winner.yaml", lambda _: None)


def test_a_winner_that_mlflow_has_not_cannot_be_registered_yet(client, made, tmp_path):
    outcome = made()
    ledger = outcome.ledger
    ledger.draw(random_draw(outcome.tune.space, 0)(1), "search")
    ledger.record(1, {"epoch": 4, "top1": 0.5}, ends_as="finished")
    with pytest.raises(ServiceError, match="--resume registers it"):
        conclude(client, outcome, tmp_path / "winner.yaml", lambda _: None)


def test_rungs_are_those_of_trials_that_max_steps_ends(made, tiny_tree):
    outcome = made()
    assert outcome.rungs == [1, 3, 4]
    short = parse_config(tiny_tree | {"optim": {"epochs": 9, "max_steps": 10}}, origin="tiny")  # of 4 steps an epoch
    assert Outcome(short, outcome.data, outcome.ledger, "search", outcome.run).rungs == [1, 3]
