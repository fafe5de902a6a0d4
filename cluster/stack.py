"""The secrets of docker/compose.yaml: one file for each thing that a container is told, all 0600."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pydantic import Field, ValidationError

from cluster import certificates
from cluster.credentials import (
    AWS_CONFIG,
    MLFLOW_USER,
    Secrets,
    aws_credentials,
    mlflow_auth,
    new_secret,
    s3_identities,
    s3_security,
    write_private,
)
from cluster.errors import UserError
from cluster.settings import LOOPBACK

BUCKET = "agmm"
DATA_BASE = "postgresql+psycopg2://mlflow@postgres/mlflow"  # the password is libpq's to find, in pgpass
_INSIDE = Path("/run/secrets")  # where compose shows them to a container
_PEM = ("s3-authority.pem", "s3-certificate.pem", "s3-key.pem")
_KEPT = "secrets.json"  # in no container: what the others are made from


class StackSecrets(Secrets):
    """What the local services have, and the data base's password."""

    postgres_password: str = Field(default_factory=new_secret)


def write_secrets(folder: Path) -> list[Path]:
    """Generate the secrets below `folder`, or read those that are there, and write every file. Returns the files.

    UserError if the folder cannot be used. Servers keep their passwords: what is there is never replaced by new ones.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        texts = {**_texts(_load_or_create(folder / _KEPT)), **_certificates(folder)}
        for name, text in texts.items():
            write_private(folder / name, text)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written to: {error}. Give one of your own.") from error
    return [folder / name for name in texts]


def _load_or_create(path: Path) -> StackSecrets:
    with contextlib.suppress(FileNotFoundError):
        try:
            return StackSecrets.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UserError(
                f"{path} is damaged. Restore it: servers that were started with it know no other. To begin anew, "
                "remove the folder, and the volumes too: docker compose down --volumes."
            ) from error
    known = StackSecrets()
    write_private(path, known.model_dump_json())
    return known


def _certificates(folder: Path) -> dict[str, str]:
    """Read the S3 server's certificates for its inner ports, or make them: the three belong together."""
    files = [folder / name for name in _PEM]
    if all(file.exists() for file in files):
        return {file.name: file.read_text(encoding="utf-8") for file in files}
    return dict(zip(_PEM, certificates.generate([LOOPBACK, "localhost"]), strict=True))


def _texts(known: StackSecrets) -> dict[str, str]:
    """Name each file and its text."""
    authority, certificate, key = (_INSIDE / name for name in _PEM)
    return {
        "aws-config": AWS_CONFIG,
        "aws-credentials": aws_credentials(known),
        "mlflow-auth.ini": mlflow_auth(known, DATA_BASE),
        "mlflow-credentials": (
            f"[mlflow]\nmlflow_tracking_username = {MLFLOW_USER}\nmlflow_tracking_password = {known.mlflow_password}\n"
        ),
        "mlflow.env": f"MLFLOW_FLASK_SERVER_SECRET_KEY={known.mlflow_session}\n",
        "pgpass": f"postgres:*:mlflow:mlflow:{known.postgres_password}\n",
        "postgres-password": known.postgres_password,
        "ray-token": known.ray_token,
        "s3.json": s3_identities(known, BUCKET),
        "security.toml": s3_security(known, authority=authority, certificate=certificate, key=key),
    }
