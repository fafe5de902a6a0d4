"""No address with credentials is taken, wherever a user could put one, and no refusal shows what it refuses."""

import itertools
import string

import numpy as np
import pytest

from pipelines import cli
from pipelines.config import parse_config
from pipelines.errors import UserError
from pipelines.secrets import ADDRESSES, has_credentials, redacted
from pipelines.storage import open_store
from pipelines.tracking.runs import tracking_uri
from pipelines.tracking.spool import close_of

ODD = ("", "/", "+", "=", "%2F", "!", "$", "&", "~", ",", ";", "*", "(", "é", ":")
FORMS = (
    "s3://user:{}@bucket/prefix",
    "s3://{}@bucket",
    "http://user:{}@127.0.0.1:1/x",
    "https://:{}@127.0.0.1:1",
    "file://user:{}@host/folder",
    "postgresql+psycopg2://agmm:{}@db:5432/mlflow",
    "ray://user:{}@127.0.0.1:10001",
)
SECRETS = [
    "".join(np.random.default_rng(seed).choice(list(string.ascii_letters + string.digits), 20)) for seed in range(200)
]


def _planted(count, start=0):
    """So many addresses with a secret each: (secret, address), odd characters within it and every form of address."""
    # A slash in what has no user name before it could be a key's: `s3://bucket/a@b`.
    told = [(form, odd) for form, odd in itertools.product(FORMS, ODD) if odd != "/" or ":{}" in form]
    shapes = itertools.islice(itertools.cycle(told), count)
    for secret, (form, odd) in zip(SECRETS[start:], shapes, strict=False):
        yield secret, form.format(f"{secret[:10]}{odd}{secret[10:]}")


def _shown(secret, text):
    return secret[:10] in text or secret[10:] in text


def test_every_planted_address_is_seen():
    planted = [address for _, address in _planted(200)]
    assert len(set(planted)) == 200
    assert [address for address in planted if not has_credentials(f"see {address} there")] == []


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/prefix/a@b",
        "file:///data/me@home/x",
        "sqlite:////home/me@work/mlflow.db",
        "http://127.0.0.1:5000",
        "https://[::1]:5000/x",
        "models:/name@champion",
        "runs:/0123/model",
        "127.0.0.1:6379",
        "ray://127.0.0.1:10001",
        "--set",
        "https://registry.example/@scope/package",
    ],
)
def test_addresses_without_credentials_pass(address):
    assert not has_credentials(address)
    assert redacted(address, {}) == address


def test_the_command_line_refuses_and_does_not_tell(capsys, monkeypatch):
    commands = (
        ["train", "cifar10_resnet18", "--set", "checkpoint.uri={}"],
        ["train", "{}"],
        ["evaluate", "{}", "--data", "/nowhere"],
        ["evaluate", "/nowhere", "--data={}"],
        ["data", "stage", "{}"],
        ["data", "push", "/nowhere", "{}"],
        ["data", "build", "/nowhere", "--out", "{}"],
        ["data", "verify", "{}"],
        ["checkpoints", "list", "{}"],
        ["checkpoints", "verify", "{}"],
        ["export", "{}", "--to", "packed", "--out", "x"],
        ["tune", "cifar10_resnet18", "--set=tracking.uri={}"],
        ["landscape", "{}", "--out", "x"],
        ["submit", "--address", "{}", "--", "true"],
        ["submit", "--", "agmm", "train", "cifar10_resnet18", "--set", "data.uri={}"],
        ["models", "show", "{}"],
        ["convert", "{}", "--out", "x"],
        ["predict", "{}", "x.png"],
    )
    for (secret, address), words in zip(_planted(90), itertools.cycle(commands), strict=False):
        with pytest.raises(SystemExit) as ended:
            cli.main([word.format(address) for word in words])
        said = "".join(capsys.readouterr())
        assert ended.value.code == 2, (words, said)
        assert "credentials in it" in said
        assert not _shown(secret, said), words


@pytest.mark.parametrize("name", ADDRESSES)
def test_the_environments_addresses_are_refused(name, capsys, monkeypatch):
    for secret, address in _planted(4, start=90):
        monkeypatch.setenv(name, address)
        with pytest.raises(SystemExit) as ended:
            cli.main(["recipes", "list"])
        said = "".join(capsys.readouterr())
        assert ended.value.code == 2
        assert said.startswith(f"Error: {name}: the address ")
        assert not _shown(secret, said)


FIELDS = (
    "data.uri",
    "data.dataset",
    "checkpoint.uri",
    "tracking.uri",
    "tracking.experiment",
    "tracking.register_as",
    "loss.distill.weights",
    "name",
    "model.arch",
    "unknown",
    "run.workers",
)


@pytest.mark.parametrize("field", FIELDS)
def test_a_recipe_with_credentials_is_refused(tiny_tree, field):
    *sections, leaf = field.split(".")
    section = tiny_tree
    for each in sections:
        section = section.setdefault(each, {})
    for secret, address in _planted(8, start=126):
        section[leaf] = address
        with pytest.raises(UserError) as caught:
            parse_config(tiny_tree, origin="tiny")
        assert not _shown(secret, str(caught.value)), field


def test_stores_and_tracking_refuse(monkeypatch):
    for secret, address in _planted(24, start=170):
        for taken in (open_store, tracking_uri):
            with pytest.raises(UserError, match="credentials in it") as caught:
                taken(address)
            assert not _shown(secret, str(caught.value))


def test_what_the_environment_hides_is_not_printed():
    environ = {
        "MLFLOW_TRACKING_TOKEN": "to ken\nwith%odd",
        "AWS_SECRET_ACCESS_KEY": "abc/def+ghi=",
        "RAY_AUTH_TOKEN_PATH": "/home/me/token",
        "MY_PASSWORD": "short",
    }
    text = (
        f"header {'to ken' + chr(10) + 'with%odd'!r} to%20ken%0Awith%25odd abc/def+ghi= abc%2Fdef%2Bghi%3D "
        "/home/me/token short proxy http://me:pw@proxy:3128 https://host:1/x"
    )
    assert redacted(text, environ) == (
        "header '***' *** *** *** /home/me/token short proxy http://*** https://host:1/x"
    )


def test_the_cause_of_a_runs_end_hides_what_the_environment_hides(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0123456789abcdef")
    assert close_of("s", "FAILED", "ValueError: bad header 0123456789abcdef")["cause"] == "ValueError: bad header ***"


def test_an_unforeseen_error_is_loud_and_hides_secrets(monkeypatch, capsys):
    def fail():
        raise RuntimeError("got tok-0123456789 from http://me:tok2-0123456789@host")

    monkeypatch.setenv("RAY_AUTH_TOKEN", "tok-0123456789")
    monkeypatch.setattr("pipelines.recipe.recipe_names", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["recipes", "list"])
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in said
    assert "0123456789" not in said
    assert "got *** from http://***" in said


def test_a_recipe_that_would_travel_with_a_job(tmp_path, capsys):
    ((secret, address),) = _planted(1, start=199)
    recipe = tmp_path / "leaky.yaml"
    recipe.write_text(f"checkpoint: {{uri: '{address}'}}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", "--address", "http://127.0.0.1:9", "--", "agmm", "train", str(recipe)])
    said = "".join(capsys.readouterr())
    assert ended.value.code == 2
    assert str(recipe) in said
    assert not _shown(secret, said)
