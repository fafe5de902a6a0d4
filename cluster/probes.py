"""Ask each service for a real answer, as a client with the generated credentials would."""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.credentials import MLFLOW_USER, CredentialFiles, Secrets
from cluster.errors import ServiceError
from cluster.processes import is_alive
from cluster.settings import REGION, ProcessRecord, Services

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SENTINEL = ".ready"
Probe = Callable[[Services], str]


def known_secrets(services: Services) -> Secrets:
    """Read the secrets that these services were started with."""
    return Secrets.model_validate_json(CredentialFiles(services.home).secrets.read_bytes())


def s3_client(services: Services, timeout: float = 5.0) -> S3Client:
    """Make a client that depends on nothing in this process's environment and gives up soon."""
    import boto3
    from botocore.config import Config

    known = known_secrets(services)
    return boto3.session.Session().client(
        "s3",
        endpoint_url=services.s3_url,
        aws_access_key_id=known.s3_key,
        aws_secret_access_key=known.s3_secret,
        region_name=REGION,
        verify=_authority(services),
        config=Config(
            connect_timeout=timeout,
            read_timeout=timeout,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def _authority(services: Services) -> str:
    """Name the file of the authority that signed the services' certificate."""
    return str(CredentialFiles(services.home).authority)


def probe_s3(services: Services) -> str:
    """List the bucket."""
    client = s3_client(services)
    try:
        client.list_objects_v2(Bucket=services.bucket, MaxKeys=1)
    finally:
        client.close()
    return f"bucket {services.bucket}"


def prepare_s3(services: Services) -> str:
    """Make the bucket, and see that it works."""
    client = s3_client(services)
    try:
        prepare_bucket(client, services.bucket)
    finally:
        client.close()
    return f"bucket {services.bucket}"


def prepare_bucket(client: S3Client, bucket: str) -> None:
    """Make the bucket, and see that an object of earlier days can be read and a new one written.

    The gateway answers seconds before the volume server has reported its volumes, and fails until then.
    """
    if bucket not in {known["Name"] for known in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=bucket)
    if client.list_objects_v2(Bucket=bucket, Prefix=_SENTINEL).get("Contents"):
        client.get_object(Bucket=bucket, Key=_SENTINEL)["Body"].read()
    client.put_object(Bucket=bucket, Key=_SENTINEL, Body=b"ready")
    client.get_object(Bucket=bucket, Key=_SENTINEL)["Body"].read()


def probe_mlflow(services: Services) -> str:
    """Ask for its health, then for the default experiment with the password."""
    authority = _authority(services)
    _get(f"{services.mlflow_url}/health", authority)
    pair = f"{MLFLOW_USER}:{known_secrets(services).mlflow_password}".encode()
    header = f"Basic {base64.b64encode(pair).decode()}"
    _get(f"{services.mlflow_url}/api/2.0/mlflow/experiments/get?experiment_id=0", authority, header)
    return "password accepted"


def probe_ray(services: Services) -> str:
    """Ask the dashboard for its version and for the nodes that are alive."""
    header, authority = f"Bearer {known_secrets(services).ray_token}", _authority(services)
    version = json.loads(_get(f"{services.dashboard_url}/api/version", authority, header))["ray_version"]
    nodes = json.loads(_get(f"{services.dashboard_url}/nodes?view=summary", authority, header))
    summary = nodes["data"]["summary"]
    alive = sum(node.get("raylet", {}).get("state") == "ALIVE" for node in summary)
    if not alive:
        raise ServiceError("No node is alive yet.")
    return f"ray {version}, {alive} node{'s' if alive > 1 else ''}"


def _get(url: str, authority: str, authorization: str | None = None) -> bytes:
    headers = {} if authorization is None else {"Authorization": authorization}
    secure = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=authority))
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), secure)  # a proxy cannot reach our loopback
    with direct.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:  # noqa: S310 (our own URL)
        body: bytes = answer.read()
    return body


def failures() -> tuple[type[Exception], ...]:
    """List what a probe raises while a service is not there. A function, since boto is slow to import."""
    from botocore.exceptions import BotoCoreError, ClientError

    return (OSError, HTTPException, ValueError, KeyError, ServiceError, BotoCoreError, ClientError)


def wait_ready(probe: Probe, services: Services, record: ProcessRecord, log: Path, timeout: float) -> str:
    """Probe until it answers. ServiceError with the log's end if the process ends or `timeout` seconds pass."""
    deadline = time.monotonic() + timeout
    expected = failures()
    while True:
        try:
            return probe(services)
        except expected as error:
            last = error
        if not is_alive(record):
            raise ServiceError(f"{record.service} ended while it was starting. {log_end(log)}")
        if time.monotonic() > deadline:
            raise ServiceError(f"{record.service} did not answer within {timeout:.0f} s ({last}). {log_end(log)}")
        time.sleep(0.2)


def log_end(log: Path, lines: int = 15) -> str:
    """Tell where the log is, and its last lines."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError:
        text = []
    return "\n  ".join([f"Its log is {log}; it ends with:", *(text or ["(nothing)"])])


def describe(probe: Probe, services: Services) -> tuple[str, str]:
    """Tell (state, detail) of a service whose process is alive."""
    expected: Any = failures()
    try:
        return "running", probe(services)
    except expected as error:
        return "unreachable", str(error).splitlines()[0] if str(error) else type(error).__name__
