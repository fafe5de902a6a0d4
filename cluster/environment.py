"""What a client process needs in its environment to use the running services with boto3, MLflow and Ray."""

from __future__ import annotations

import os
import shlex
from collections.abc import MutableMapping
from pathlib import Path

from cluster.credentials import MLFLOW_USER, CredentialFiles
from cluster.processes import is_alive
from cluster.settings import LOOPBACK, REGION, Services, load_services

# boto3 prefers these to the files and the endpoint given here, so a user's own account would be tried on our server.
CONFLICTING = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_CA_BUNDLE",
    "RAY_AUTH_TOKEN",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_INSECURE_TLS",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
)
_SECRET_FILES = {"MLFLOW_TRACKING_PASSWORD": "mlflow_password"}


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a client of `home`'s services; empty if none are running."""
    services = load_services(home)
    if services is None or not services.complete or not any(map(is_alive, services.processes)):
        return {}
    return client_environment(services)


def client_environment(services: Services) -> dict[str, str]:
    """Return the variables of a client of these services, whether or not they run."""
    password = CredentialFiles(services.home).mlflow_password.read_text(encoding="utf-8")
    return {
        **_authority(services),
        **_s3_environment(services),
        **_ray_environment(services),
        **_direct_connections(services),
        "AGMM_HOME": str(services.home),
        "AGMM_STORE": f"s3://{services.bucket}",
        "MLFLOW_TRACKING_URI": services.mlflow_url,
        "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
        "MLFLOW_TRACKING_PASSWORD": password,  # MLflow reads a file only at one fixed place below the user's home
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _authority(services: Services) -> dict[str, str]:
    """Tell boto3 and MLflow whose certificates to believe, where the services have some."""
    if not services.tls:
        return {}
    path = str(CredentialFiles(services.home).authority)
    return {
        "AWS_CA_BUNDLE": path,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": path,
        # Through its server: at S3 itself MLflow's client believes nobody but the system's authorities.
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    }


def _s3_environment(services: Services) -> dict[str, str]:
    files = CredentialFiles(services.home)
    return {
        "AWS_SHARED_CREDENTIALS_FILE": str(files.aws),
        "AWS_CONFIG_FILE": str(files.aws_config),
        "AWS_ENDPOINT_URL_S3": services.s3_url,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _ray_environment(services: Services) -> dict[str, str]:
    files = CredentialFiles(services.home)
    return {
        "RAY_ADDRESS": services.ray_address,
        "RAY_API_SERVER_ADDRESS": services.dashboard_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(files.ray_token),
        # The token is looked at too late: one call without it to the stream between nodes ends Ray 2.60's head.
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(files.authority),
        "RAY_TLS_SERVER_CERT": str(files.certificate),
        "RAY_TLS_SERVER_KEY": str(files.key),
        # Despite its name it counts on every system: off, Ray keeps 127.0.0.1 instead of turning it into the
        # machine's outer address, for the head's own ports and for the address that a client gives.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _direct_connections(services: Services) -> dict[str, str]:
    """Keep a user's HTTP proxy out of the way of the services, where one is set."""
    if not any(os.environ.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        return {}
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = ",".join(dict.fromkeys([*filter(None, known.split(",")), services.host, LOOPBACK, "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def activate(home: Path, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Point this process at `home`'s services. False, and nothing changed, if none are running."""
    wanted = environment(home)
    if not wanted:
        return False
    for name in CONFLICTING:
        environ.pop(name, None)
    environ.update(wanted)
    return True


def export_lines(home: Path) -> list[str]:
    """Return shell lines that do the same as `activate`. A secret is read from its file by the shell, never printed."""
    wanted = environment(home)
    if not wanted:
        return []
    return [f"unset {' '.join(CONFLICTING)}", *(_export(home, name, value) for name, value in wanted.items())]


def _export(home: Path, name: str, value: str) -> str:
    if name in _SECRET_FILES:
        path = getattr(CredentialFiles(home), _SECRET_FILES[name])
        return f'export {name}="$(cat {shlex.quote(str(path))})"'
    return f"export {name}={shlex.quote(value)}"
