"""The real services, started once on free ports: S3, MLflow, Ray head, and jobs on it."""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import subprocess
import sys

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from cluster import services
from cluster.credentials import CredentialFiles
from cluster.probes import known_secrets
from cluster.settings import Services, ServiceSettings
from tests.cluster.listeners import family

pytestmark = [
    pytest.mark.s3,
    pytest.mark.ray,
    pytest.mark.timeout(120),
    # Ray 2.60 follows a job's log with an argument that aiohttp 3.14 renamed.
    pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning"),
]


def _arguments(running: Services) -> list[str]:
    """Of those that still live: a job's process may end meanwhile."""
    found = []
    for process in family(running):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return found


def _every_secret(running: Services) -> list[str]:
    known = known_secrets(running)
    basic = base64.b64encode(f"agmm:{known.mlflow_password}".encode()).decode()
    return [*known.model_dump().values(), basic]


def test_status_says_that_all_three_answer(running: Services) -> None:
    found = services.status(running.home)
    assert [(each.service, each.state) for each in found] == [
        ("s3", "running"),
        ("mlflow", "running"),
        ("ray", "running"),
    ]
    assert [each.url for each in found] == [running.s3_url, running.mlflow_url, running.dashboard_url]


def test_boto3_needs_only_the_environment(client: Services) -> None:
    s3 = boto3.session.Session().client("s3")
    body = os.urandom(3_000_000)
    s3.put_object(Bucket=client.bucket, Key="some/thing", Body=body)
    assert s3.get_object(Bucket=client.bucket, Key="some/thing")["Body"].read() == body
    s3.close()


def test_the_key_opens_one_bucket_only(client: Services) -> None:
    s3 = boto3.session.Session().client("s3")
    for attempt in (
        lambda: s3.create_bucket(Bucket="another"),
        lambda: s3.put_object(Bucket="another", Key="thing", Body=b"x"),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()
    s3.close()


@pytest.mark.parametrize("key", ["wrong key", "wrong secret"])
def test_s3_refuses_others(client: Services, key: str) -> None:
    known = known_secrets(client)
    s3 = boto3.session.Session().client(
        "s3",
        aws_access_key_id="NOBODY" if key == "wrong key" else known.s3_key,
        aws_secret_access_key="wrong",
    )
    with pytest.raises(ClientError, match=r"InvalidAccessKeyId|SignatureDoesNotMatch"):
        s3.list_objects_v2(Bucket=client.bucket)
    s3.close()


def test_an_mlflow_artifact_ends_in_s3(client: Services) -> None:
    """By the printed shell lines alone, as a user would in another terminal."""
    script = (
        "import mlflow\n"
        "mlflow.set_experiment('lines')\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.log_metric('loss', 0.5)\n"
        "    mlflow.log_text('spikes', 'notes/a.txt')\n"
        "print(mlflow.get_run(run.info.run_id).data.metrics['loss'])\n"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    lines = [*services.export_lines(client.home), 'exec "$0" -c "$1"']
    command = ["sh", "-ec", "\n".join(lines), sys.executable, script]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0.5"
    s3 = boto3.session.Session().client("s3")
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket=client.bucket, Prefix="mlflow/")["Contents"]]
    assert [key for key in keys if key.endswith("/notes/a.txt")]
    s3.close()


def test_only_this_user_reads_the_secrets(running: Services) -> None:
    files = CredentialFiles(running.home)
    for folder in (files.secrets.parent, running.runtime_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    paths = list(vars(files).values())
    assert len(paths) > 5
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in paths} == dict.fromkeys(
        (path.name for path in paths), "0o600"
    )


def test_no_secret_is_an_argument_or_in_a_log(running: Services) -> None:
    secrets = _every_secret(running)
    arguments = _arguments(running)
    assert len(arguments) > 10
    assert [each for each in arguments if any(secret in each for secret in secrets)] == []
    logs = [*running.home.glob("services/*.log"), *(running.runtime_dir / "r" / "session_latest" / "logs").rglob("*")]
    texts = {path: path.read_text(errors="replace") for path in logs if path.is_file()}
    assert len(texts) > 10
    assert [path for path, text in texts.items() if any(secret in text for secret in secrets)] == []


def test_up_again_returns_what_runs(running: Services) -> None:
    said: list[str] = []
    again = services.up(ServiceSettings(home=running.home), said.append)
    assert again == running
    assert len(said) == 1
    assert said[0].startswith("Already running")
