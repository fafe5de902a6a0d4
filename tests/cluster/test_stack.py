"""The secrets of the compose file: private, kept, and as each program reads them."""

from __future__ import annotations

import configparser
import json
import stat
from pathlib import Path

import pytest

from cluster import stack
from cluster.errors import UserError


def _texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_are_private_and_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "secrets"
    files = stack.write_secrets(folder)
    first = _texts(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    (folder / "pgpass").unlink()
    assert stack.write_secrets(folder) == files
    assert _texts(folder) == first
    assert {path.name for path in files} == set(first) - {"secrets.json"}


def test_each_secret_is_another(tmp_path: Path) -> None:
    for name in ("one", "two"):
        stack.write_secrets(tmp_path / name)
    drawn = [
        value
        for name in ("one", "two")
        for value in json.loads((tmp_path / name / "secrets.json").read_text()).values()
    ]
    assert len(set(drawn)) == len(drawn) == 14


def test_programs_find_the_same_secrets(tmp_path: Path) -> None:
    stack.write_secrets(tmp_path)
    known = stack.StackSecrets.model_validate_json((tmp_path / "secrets.json").read_bytes())
    server, client, aws = (configparser.ConfigParser() for _ in range(3))
    server.read(tmp_path / "mlflow-auth.ini")
    client.read(tmp_path / "mlflow-credentials")
    aws.read(tmp_path / "aws-credentials")
    assert server["mlflow"]["admin_password"] == client["mlflow"]["mlflow_tracking_password"] == known.mlflow_password
    assert server["mlflow"]["admin_username"] == client["mlflow"]["mlflow_tracking_username"]
    assert server["mlflow"]["database_uri"] == stack.DATA_BASE
    identity = json.loads((tmp_path / "s3.json").read_text())["identities"][0]
    pair = {"accessKey": aws["default"]["aws_access_key_id"], "secretKey": aws["default"]["aws_secret_access_key"]}
    assert identity["credentials"] == [pair]
    assert all(action.endswith(f":{stack.BUCKET}") for action in identity["actions"])
    assert (tmp_path / "pgpass").read_text() == f"postgres:*:mlflow:mlflow:{known.postgres_password}\n"


def test_damaged_secrets_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(UserError, match=r"is damaged.*down --volumes"):
        stack.write_secrets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["secrets.json"]


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"):
        stack.write_secrets(tmp_path / "file" / "secrets")
