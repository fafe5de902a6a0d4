"""Where secrets are kept out: no address holds one, and what is printed or stored shows none that the environment has.

An address travels far: into the run's parameters in MLflow, its checkpoints, a job's record, messages and logs. So one
with a user name, a password or a key in it is refused at the edges; credentials come from the environment and files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

from pipelines.errors import UserError

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s'\"<>]*)", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|ACCESS_KEY|API_?KEY|PASSPHRASE|SIGNATURE)", re.I)
_NO_VALUE = ("_PATH", "_FILE", "_DIR", "_URI", "_URL", "_MODE")  # such a variable says where a secret is
_SHORTEST = 6  # characters: what is shorter would hide ordinary words
_HIDDEN = "***"
# Variables that a run takes an address from.
ADDRESSES = (
    "AGMM_STORE",
    "AGMM_CACHE",
    "AGMM_HOME",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
)
ADVICE = (
    "Take them out: S3's keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws/credentials, MLflow's "
    "into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, Ray's token into RAY_AUTH_TOKEN_PATH"
)


def has_credentials(text: str) -> bool:
    """Whether an address in the text has a user name, password or key before its host."""
    return any(_is_open(found) for found in _ADDRESS.finditer(text))


def _is_open(found: re.Match[str]) -> bool:
    """Userinfo, or a port that is no number: `s3://key:secret/of/aws@bucket`, whose slash ends the host too early."""
    rest = found[2].rstrip(".,:;)!?")  # of the sentence that it stands in
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = host.rpartition("]")[2].partition(":")[2]
    return "@" in host or (":" in host and "@" in rest) or bool(port and not port.isdecimal())


def refuse_credentials(texts: Iterable[str], where: str) -> None:
    """Raise UserError for the first text with an address that has credentials; the message does not show them."""
    for text in texts:
        if has_credentials(text):
            shown = next(f"{found[1]}://{_HIDDEN}" for found in _ADDRESS.finditer(text) if _is_open(found))
            raise UserError(f"{where}: the address {shown} has credentials in it. {ADVICE}.")


def refuse_addresses(environ: Mapping[str, str] = os.environ) -> None:
    """Raise UserError where a variable that a run takes an address from has credentials in it."""
    for name in ADDRESSES:
        refuse_credentials([environ.get(name, "")], name)


def redacted(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text without what the environment's secret variables hold, and without credentials in addresses.

    Libraries put into their errors what they were given: a header with a token, the address of a proxy.
    """
    for secret in sorted(_secrets(environ), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return _ADDRESS.sub(lambda found: f"{found[1]}://{_HIDDEN}" if _is_open(found) else found[0], text)


def _secrets(environ: Mapping[str, str]) -> Iterator[str]:
    """Every secret, as it is, as Python would show it, and as an address would hold it."""
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and not name.endswith(_NO_VALUE) and len(value) >= _SHORTEST:
            yield from {value, repr(value)[1:-1], quote(value, safe="")}
