"""Generated secrets, and the files through which each program reads its share. All 0600, in a folder of 0700.

Secrets go through files wherever the program can read one: arguments are visible to every user of the machine.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from cluster import certificates
from cluster.settings import LOOPBACK, REGION, service_dir

MLFLOW_USER = "agmm"


def new_secret() -> str:
    """Draw one of 192 bits."""
    return secrets.token_hex(24)


class Secrets(BaseModel):
    """One home's secrets. They outlive a restart, because MLflow keeps the password's hash in its data base."""

    model_config = ConfigDict(frozen=True)

    s3_key: str = Field(default_factory=lambda: secrets.token_hex(10).upper())
    s3_secret: str = Field(default_factory=new_secret)
    s3_internal: str = Field(default_factory=new_secret)
    mlflow_password: str = Field(default_factory=new_secret)
    mlflow_session: str = Field(default_factory=new_secret)
    ray_token: str = Field(default_factory=new_secret)


class CredentialFiles:
    """Where each program's share lies, below the services' folder of `home`."""

    def __init__(self, home: Path) -> None:
        folder = service_dir(home)
        self.secrets = folder / "secrets.json"
        self.aws = folder / "aws-credentials"
        self.aws_config = folder / "aws-config"
        self.s3 = folder / "s3.json"
        self.s3_security = folder / "security.toml"
        self.mlflow = folder / "mlflow-auth.ini"
        self.mlflow_users = folder / "mlflow-users.db"
        self.mlflow_password = folder / "mlflow-password"
        self.ray_token = folder / "ray-token"
        self.authority = folder / "authority.pem"
        self.certificate = folder / "certificate.pem"
        self.key = folder / "key.pem"


def write_private(path: Path, text: str) -> None:
    """Write so that nobody else can read it at any moment, and no reader sees half of it."""
    partial = path.with_name(path.name + ".part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    partial.replace(path)


def load_or_create(home: Path, bucket: str, host: str = LOOPBACK) -> Secrets:
    """Read this home's secrets, or generate them, and write every file that the programs read.

    The S3 key opens `bucket` and no other; the certificate is for `host` and for loopback.
    """
    files = CredentialFiles(home)
    if files.secrets.exists():
        known = Secrets.model_validate_json(files.secrets.read_bytes())
    else:
        known = Secrets()
        # MLflow takes the password only when it creates its user: a user of older secrets could never log in.
        files.mlflow_users.unlink(missing_ok=True)
        write_private(files.secrets, known.model_dump_json())
    _write_certificates(files, host)
    _write_s3(files, known, bucket)
    _write_mlflow(files, known)
    write_private(files.ray_token, known.ray_token)
    return known


def s3_identities(known: Secrets, bucket: str) -> str:
    """Tell SeaweedFS of the one key pair, and that it opens `bucket` and no other."""
    identity = {
        "name": "agmm",
        "credentials": [{"accessKey": known.s3_key, "secretKey": known.s3_secret}],
        "actions": [f"{action}:{bucket}" for action in ("Admin", "Read", "Write", "List", "Tagging")],
    }
    return json.dumps({"identities": [identity]})


def aws_credentials(known: Secrets) -> str:
    """Give boto3 the key pair, as its shared credentials file."""
    return f"[default]\naws_access_key_id = {known.s3_key}\naws_secret_access_key = {known.s3_secret}\n"


AWS_CONFIG = f"[default]\nregion = {REGION}\ns3 =\n    addressing_style = path\n"


def mlflow_auth(known: Secrets, users: str) -> str:
    """Tell the MLflow server its first user, and `users`, the address of the data base that keeps them."""
    lines = [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = {users.replace('%', '%%')}",
        f"admin_username = {MLFLOW_USER}",
        f"admin_password = {known.mlflow_password}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        # Checking the password's hash takes about 150 ms: once per five minutes instead of once per request.
        "auth_cache_ttl_seconds = 300",
    ]
    return "\n".join(lines) + "\n"


def _write_certificates(files: CredentialFiles, host: str) -> None:
    made = certificates.generate(dict.fromkeys([LOOPBACK, "localhost", host]))
    for path, text in zip((files.authority, files.certificate, files.key), made, strict=True):
        write_private(path, text)


def _write_s3(files: CredentialFiles, known: Secrets, bucket: str) -> None:
    write_private(files.s3, s3_identities(known, bucket))
    closed = s3_security(known, authority=files.authority, certificate=files.certificate, key=files.key)
    write_private(files.s3_security, closed)
    write_private(files.aws, aws_credentials(known))
    write_private(files.aws_config, AWS_CONFIG)


def s3_security(known: Secrets, *, authority: Path, certificate: Path, key: Path) -> str:
    """Close the gateway's own back ends: master, volume server and filer would serve any local user past it.

    Their keys sign what the gateway asks of them by HTTP. The master hands such signatures to whoever asks, and deletes
    buckets; gRPC knows no keys: so both are spoken with the certificate only. Paths are as the server sees them.
    """
    signing = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    pair = f'cert = "{certificate}"\nkey = "{key}"\n'
    signer = f'ca = "{authority}"\n'
    grpc = [f"grpc.{part}" for part in ("master", "volume", "filer", "s3", "client")]
    https = [f"https.{part}" for part in ("master", "volume", "filer", "client")]
    sections = {
        **dict.fromkeys(signing, f'key = "{known.s3_internal}"\n'),
        "grpc": signer,
        **dict.fromkeys(grpc, pair),
        **dict.fromkeys(https, pair + signer),
    }
    sections["https.client"] += "enabled = true\n"
    return "".join(f"[{name}]\n{lines}" for name, lines in sections.items())


def _write_mlflow(files: CredentialFiles, known: Secrets) -> None:
    write_private(files.mlflow, mlflow_auth(known, f"sqlite:///{files.mlflow_users}"))
    write_private(files.mlflow_password, known.mlflow_password)
