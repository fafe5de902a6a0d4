"""`agmm tune` as a user types it, up to where trainings would start."""

import json

import pytest
import yaml

from pipelines import cli
from pipelines.config import TuneConfig
from pipelines.recipe import load_recipe
from pipelines.search import launcher


def _run(*words):
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, words)))
    return ended.value.code


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    return path


@pytest.fixture
def nothing_starts(monkeypatch):
    """No run is opened and no Ray is started by what is refused before that."""
    monkeypatch.setattr(launcher, "tracked", lambda *_, **__: pytest.fail("a run was opened"))
    monkeypatch.setattr(launcher.ray_driver, "connected", lambda **_: pytest.fail("Ray was started"))


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--trials", "0"], ["--trials", "0 is not in the range x>=1"]),
        (["--trials", "many"], ["--trials", "not a valid integer"]),
        (["--set", "tune.trials=0"], ["tune.trials", "greater than or equal to 1"]),
        (["--set", "tune.space.leak={uniform: [0, 1.5]}"], ["tune.space.leak may draw 1.5", "model.neuron.leak"]),
        (["--set", "tune.space.leak={uniform: [1, 0]}"], ["tune.space.leak", "low < high"]),
        (["--set", "tune.space.leek={uniform: [0, 1]}"], ["tune.space.leek", "Known here", "leak"]),
        (["--set", "tune.searcher=grid"], ["tune.searcher", "random", "tpe"]),
        (["--set", "tune.grace=9"], ["tune.grace=9", "4 epochs"]),
        (["--set", "tune.space.lr={choice: [-1]}"], ["tune.space.lr may draw -1", "optim.lr"]),
        (["--proxy", "--set", "tune.proxy.resolution=12"], ["resolution"]),
        (["--out", "{folder}/there.yaml"], ["--out", "there.yaml is there already", "new .yaml file"]),
        (["--out", "{folder}/winner.txt"], ["--out", "winner.txt is not a .yaml file"]),
        (["--out", "{folder}/tiny.yaml/winner.yaml"], ["--out", "tiny.yaml is no folder"]),
    ],
)
def test_a_mistake_is_one_message(recipe, tmp_path, capsys, nothing_starts, words, messages):
    (tmp_path / "there.yaml").touch()
    assert _run("tune", recipe, *(word.replace("{folder}", str(tmp_path)) for word in words)) == 2
    shown = capsys.readouterr()
    assert all(message in shown.err for message in messages), shown.err
    assert shown.err.count("Error: ") == 1
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_recipe_that_is_not_there(capsys):
    assert _run("tune", "NOPE") == 2
    assert "Unknown recipe 'NOPE'. Known: " in capsys.readouterr().err


def test_nothing_to_resume(recipe, capsys):
    assert _run("tune", recipe, "--resume") == 2
    shown = capsys.readouterr().err
    assert "Nothing to resume: " in shown
    assert "'tiny.search'" in shown
    assert "Leave out --resume" in shown


RESULT = {
    "best": {"number": 2, "recipe": "winner.yaml", "model": "models:/tiny/1", "run_id": "abc"},
    "trials": [
        {"number": number, "stage": "search", "state": state, "epochs": epochs, "top1": top1}
        | {"values": {"leak": 0.123456, "method": "agmm"}, "cause": cause, "run_id": None}
        for number, state, epochs, top1, cause in [
            (1, "failed", 0, None, "NotFinite: nan\nand where"),
            (2, "finished", 4, 0.91234567, ""),
        ]
    ],
    "rungs": [
        {"rung": 1, "later": 4, "n": 8, "spearman": 0.75, "kendall": 0.5},
        {"rung": 2, "later": 4, "n": 1, "spearman": None, "kendall": None},
    ],
    "seconds": 12.5,
    "run_id": "parent",
}


@pytest.fixture
def asked(monkeypatch):
    """What a command asks for; the answer is a search that has ended, with much said on the way."""
    calls = []

    def answer(config, *, resume, proxy, out, say):
        calls.append((config, resume, proxy, out))
        say("much is said")
        return RESULT

    monkeypatch.setattr(launcher, "tune_recipe", answer)
    return calls


def test_json_is_one_object_on_stdout(recipe, asked, capsys):
    assert _run("tune", recipe, "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == RESULT
    assert shown.out.count("\n") == 1
    assert "much is said" in shown.err


def test_a_person_gets_a_table_and_the_best(recipe, asked, capsys):
    assert _run("tune", recipe, "--trials", 3, "--proxy", "--resume", "--out", "x.yaml") == 0
    ((config, resume, proxy, out),) = asked
    assert (config.tune.trials, resume, proxy, str(out)) == (3, True, True, "x.yaml")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["number", "stage", "state", "epochs", "top1", "leak", "method"]
    assert lines[1] == ["1", "search", "failed", "0", "-", "0.1235", "agmm"]
    assert lines[2] == ["2", "search", "finished", "4", "0.9123", "0.1235", "agmm"]
    words = [" ".join(line) for line in lines]
    assert "trial 1 failed: NotFinite: nan" in words
    assert "ranks of epoch 1 and epoch 4 agree: Spearman 0.75, Kendall 0.50 (n = 8)" in words
    assert not any("epoch 2" in line for line in words)
    assert words[-5:] == [
        "best trial 2",
        "recipe winner.yaml",
        "model models:/tiny/1",
        "run_id abc",
        "search parent",
    ]


def test_trials_is_the_last_word(recipe, asked):
    assert _run("tune", recipe, "--trials", 3, "--set", "tune.trials=9", "--set", "tune.searcher=tpe") == 0
    assert (asked[0][0].tune.trials, asked[0][0].tune.searcher) == (3, "tpe")


def test_a_recipe_without_a_search_has_the_default_one(recipe):
    config = load_recipe(str(recipe))
    assert config.tune is None
    assert launcher._searchable(config).tune == TuneConfig()
    assert list(TuneConfig().space.drawn) == ["leak", "threshold", "surrogate_width"]
