"""A secret of this environment is found before it is sent, and not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.jobs.leaks import known_secrets, refuse_secrets

PLANTED = "planted-0123456789"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    files = {
        "token": f"{PLANTED}-token\n",
        "aws": f"[default]\naws_access_key_id = AKIAPLANTED\naws_secret_access_key = {PLANTED}-aws\n",
        "ca": "-----BEGIN CERTIFICATE-----\nMIIplanted\n-----END CERTIFICATE-----\n",
        "key": f"-----BEGIN PRIVATE KEY-----\n{PLANTED}\n-----END PRIVATE KEY-----\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return {
        "MLFLOW_TRACKING_PASSWORD": f"{PLANTED}-mlflow",
        "WANDB_API_KEY": f"{PLANTED}-wandb",
        "PIN_SECRET": "1234",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws"),
        "SSL_CERT_FILE": str(tmp_path / "ca"),
        "RAY_TLS_SERVER_KEY": str(tmp_path / "key"),
        "LD_LIBRARY_PATH": f"{tmp_path}:/lib",
        "GONE_FILE": str(tmp_path / "none"),
        "HOME": str(tmp_path),
    }


def test_secrets_are_found_in_variables_and_files(environ: dict[str, str]) -> None:
    assert sorted(known_secrets(environ)) == [
        "AWS_SHARED_CREDENTIALS_FILE (aws_secret_access_key)",
        "MLFLOW_TRACKING_PASSWORD",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_TLS_SERVER_KEY",
        "WANDB_API_KEY",
    ]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"--token={PLANTED}-token", "RAY_AUTH_TOKEN_PATH"),
        (f"env KEY={PLANTED}-aws true", r"AWS_SHARED_CREDENTIALS_FILE \(aws_secret_access_key\)"),
        ("https://me:planted-other@host/x", "an address with a password"),
    ],
)
def test_a_text_with_a_secret_is_refused(environ: dict[str, str], text: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"Word 2 of the command holds .*{name}") as caught:
        refuse_secrets(
            {"Word 1 of the command": b"agmm", "Word 2 of the command": text.encode()}, known_secrets(environ)
        )
    assert "planted" not in str(caught.value)


def test_other_texts_pass(environ: dict[str, str]) -> None:
    refuse_secrets({"x": b"agmm train cifar10 1234 https://host:8265/a@b s3://a/b"}, known_secrets(environ))
