"""S3 and MLflow by TLS: what works with the authority's certificate fails without, and nothing goes in plain text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import SSLError
from pydantic import ValidationError

from cluster import certificates, services
from cluster.environment import client_environment
from cluster.errors import UserError
from cluster.settings import Services, ServiceSettings
from tests.cluster.listeners import Listener, status


@pytest.mark.s3
def test_s3_needs_the_authority(client: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_text(certificates.generate(["127.0.0.2"]).authority)
    for bundle in (None, str(stranger)):
        monkeypatch.delenv("AWS_CA_BUNDLE") if bundle is None else monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
        s3 = boto3.session.Session().client("s3", config=Config(retries={"total_max_attempts": 1}))
        with pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            s3.list_objects_v2(Bucket=client.bucket)
        s3.close()


@pytest.mark.s3
def test_mlflow_needs_the_authority(client: Services) -> None:
    script = "import mlflow; print(mlflow.get_experiment('0').name)"
    retries = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment = {**os.environ, **client_environment(client), **retries}
    without = {name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_SERVER_CERT_PATH"}
    ran = [
        subprocess.run([sys.executable, "-c", script], env=each, capture_output=True, text=True, timeout=60)
        for each in (environment, without)
    ]
    assert [each.returncode for each in ran] == [0, 1]
    assert "CERTIFICATE_VERIFY_FAILED" in ran[1].stderr


_FILE = """
import mlflow
with mlflow.start_run() as run:
    mlflow.log_text("one bit a weight", "said.txt")
print(mlflow.artifacts.load_text(run.info.artifact_uri + "/said.txt"))
"""


@pytest.mark.s3
def test_mlflow_gives_and_takes_files(client: Services) -> None:
    retries = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    environment = {**os.environ, **client_environment(client), **retries}
    ran = subprocess.run(
        [sys.executable, "-c", _FILE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "one bit a weight" in ran.stdout


@pytest.mark.s3
@pytest.mark.parametrize("part", ["s3", "mlflow"])
def test_nothing_is_said_in_plain_text(running: Services, part: str) -> None:
    port = getattr(running.ports, part)
    assert status(Listener(part, running.host, port), "GET", "/health") in (0, 400)
    assert status(Listener(part, "127.0.0.1", port), "GET", "/health") in (0, 400)


@pytest.mark.s3
@pytest.mark.ray
def test_up_does_not_pass_for_another_kind(running: Services) -> None:
    with pytest.raises(UserError, match=r"another --tls.*https://127\.0\.0\.2.*agmm down"):
        services.up(ServiceSettings(home=running.home, tls=False))


@pytest.mark.parametrize("host", ["192.0.2.77", "10.1.2.3"])
def test_wider_than_loopback_takes_tls(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValidationError, match=r"wider than loopback.*plain text\. Add --tls"):
        ServiceSettings(home=tmp_path, host=host)
    assert ServiceSettings(home=tmp_path, host=host, tls=True).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "::1", "localhost", "", "127.0.0.1/8", "127.0.0.1\n"])
def test_a_host_is_one_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(ValidationError, match="--host takes one"):
        ServiceSettings(home=tmp_path, host=host, tls=True)


def test_a_host_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"192\.0\.2\.77 is no address of this machine"):
        services.up(ServiceSettings(home=tmp_path, host="192.0.2.77", tls=True))
    assert not (tmp_path / "services" / "state.json").exists()


def test_two_authorities_differ() -> None:
    first, second = certificates.generate(["127.0.0.1"]), certificates.generate(["127.0.0.1"])
    assert not set(first) & set(second)
    assert all(text.startswith("-----BEGIN ") for text in first)
