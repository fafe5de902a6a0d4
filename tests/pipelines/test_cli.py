import json
import signal
import subprocess
import sys

import pytest

from pipelines import cli


def _run(*words):
    """Exit code of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code


def test_help_imports_nothing_heavy():
    code = "import sys, pipelines.cli as c\ntry: c.main(['-h'])\nexcept SystemExit: print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "ray", "mlflow", "numpy", "boto3", "pydantic", "timm"):
        assert f"'{heavy}'" not in loaded


def test_help_of_every_command(capsys):
    def walk(command, path):
        yield path
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])

    for path in walk(cli.agmm, []):
        assert _run(*path, "--help") == 0
        assert capsys.readouterr().out.startswith("Usage: agmm")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "no_such"], 2, "Unknown recipe 'no_such'. Known: cifar10"),
        (["train", "fashion_mnist_resnet18"], 2, "agmm data build"),
        (
            ["train", "fashion_mnist_resnet18", "--set", "optim.rate=1"],
            2,
            "optim.rate: unknown key. Known here: opt",
        ),
        (["train"], 2, "Missing argument 'RECIPE'"),
        (["fly"], 2, "No such command 'fly'"),
        (["data", "build", "missing-folder"], 2, "missing-folder"),
        (["data", "fetch", "mnist-of-mars"], 2, "Known: "),
        (["data", "verify", "missing-folder"], 2, "missing-folder"),
        (["evaluate", "missing-model"], 2, "missing-model"),
        (["models", "promote", "nobody"], 2, "Unknown model 'nobody'"),
        (["submit", "--", "true"], 2, "agmm up"),
        (["up", "--s3-port", "80"], 2, "1024 to 65535"),
        (["data", "build", ".", "--name", "../evil"], 2, "cannot name a data set"),
    ],
)
def test_a_users_mistake_is_one_message_without_a_traceback(capsys, words, code, message):
    assert _run(*words) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_bug_stays_loud(monkeypatch, capsys):
    def broken(*_, **__):
        raise KeyError("bug")

    monkeypatch.setattr("pipelines.recipe.load_recipe", broken)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "fashion_mnist_resnet18"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.rstrip().endswith("KeyError: 'bug'")


@pytest.mark.parametrize("ignored", [False, True])
def test_sigterm_ends_a_command_as_ctrl_c_does(monkeypatch, capsys, ignored):
    """Also where Ctrl-C is ignored, as in a job that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        _terminated(monkeypatch, capsys)
    finally:
        signal.signal(signal.SIGINT, before)


def _terminated(monkeypatch, capsys):
    monkeypatch.setattr("pipelines.recipe.load_recipe", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert _run("train", "fashion_mnist_resnet18") == 130
    assert "interrupted" in capsys.readouterr().err


def test_recipes_show_and_schema(capsys):
    assert _run("recipes", "list") == 0
    assert "imagenet_resnet18" in capsys.readouterr().out
    assert _run("recipes", "show", "cifar10_resnet19", "--set", "seed=3") == 0
    assert "seed: 3" in capsys.readouterr().out
    assert _run("recipes", "schema") == 0
    assert json.loads(capsys.readouterr().out)["properties"]["optim"]
