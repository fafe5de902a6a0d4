"""The connection to a Ray head's job server: address, token, certificate, and errors that say what to do."""

from __future__ import annotations

import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from cluster.errors import ServiceError, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ADDRESS = "RAY_API_SERVER_ADDRESS"
_CA_FILE = "SSL_CERT_FILE"
_TIMEOUT_S = (10.0, 120.0)  # to connect; between two bytes of an answer


class Head(NamedTuple):
    """A job server that has answered. `tls` is what aiohttp takes as `ssl`, `client` Ray's own for all but the log."""

    url: str
    headers: Mapping[str, str]
    tls: ssl.SSLContext | bool
    client: JobSubmissionClient


@contextmanager
def connected(address: str | None = None, ca: str | None = None) -> Iterator[Head]:
    """Connect to a job server; what goes wrong while it is used becomes an error that says what to do.

    address: URL, by default RAY_API_SERVER_ADDRESS.
    ca: file of the certificate authorities to trust for https, by default SSL_CERT_FILE, or else the system's.

    Raises UserError (no address, no access, a certificate that is not trusted) or ServiceError (no answer).
    """
    url, trusted = job_server(address), _ca_file(ca)
    headers = authorization(url)
    tls = ssl.create_default_context(cafile=trusted) if url.startswith("https://") else True
    _check_answers(url, tls, trusted)
    from ray.exceptions import AuthenticationError
    from requests import RequestException

    try:
        yield Head(url, headers, tls, _client(url, headers, trusted))
    except AuthenticationError as error:
        raise UserError(
            f"The Ray head at {url} refused the token. Set {_ADDRESS}={url}, RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file with its token. For a head that `agmm up` started, use the same AGMM_HOME."
        ) from error
    except BrokenPipeError:
        raise  # whoever read our output has left; the head is well
    except (ConnectionError, RequestException) as error:
        raise no_head(url, error) from error
    except RuntimeError as error:
        if "does not exist" in str(error):
            raise no_job(url) from error
        raise ServiceError(f"The Ray head at {url} refused: {error}") from error


def job_server(address: str | None) -> str:
    """Find the job server's URL. Ray would take an address without a scheme for that of the head's object store."""
    chosen = address or os.environ.get(_ADDRESS)
    if not chosen:
        raise UserError(
            f"No Ray head is known: {_ADDRESS} is not set. Start one with `agmm up`, or name one with --address URL."
        )
    url = chosen if "://" in chosen else f"http://{chosen}"
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{chosen!r} is not the address of a job server. It starts with http:// or https://.")
    if "@" in urlsplit(url).netloc:
        raise UserError("The address holds a password, which would be shown. Set RAY_AUTH_TOKEN_PATH instead.")
    return url.rstrip("/")


def no_job(url: str) -> UserError:
    """The error for a job that a head does not know."""
    return UserError(f"The Ray head at {url} knows no such job. `agmm jobs list` shows those it knows.")


def no_head(url: str, error: object) -> ServiceError:
    """The error for a head that does not answer."""
    return ServiceError(
        f"No Ray head answers at {url} ({error}). Start one with `agmm up`, or name one with --address."
    )


def _client(url: str, headers: dict[str, str], trusted: str | None) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    for chatter in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{chatter}").setLevel(logging.WARNING)
    # Ray adds the token of this environment for whatever head it talks to, unless there is such a header.
    own = {"Authorization": "", **headers}
    with _environment_address(url):
        client = JobSubmissionClient(url, headers=own, verify=trusted or True)
    client._do_request = partial(client._do_request, timeout=_TIMEOUT_S)  # it has none of its own
    return client


def authorization(url: str) -> dict[str, str]:
    """Read the token as Ray would, at this moment: Ray looks once, when a process first imports it.

    It goes to the head that the environment names, and to no other: `--address` may name a stranger's.
    """
    if url != job_server(os.environ.get(_ADDRESS, url)):
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(f"RAY_AUTH_TOKEN_PATH names a file that cannot be read: {error}.") from error
    return {"Authorization": f"Bearer {token}"} if token else {}


def _ca_file(given: str | None) -> str | None:
    """The file of trusted authorities. Raises UserError where it holds none."""
    path = given or os.environ.get(_CA_FILE)
    if not path:
        return None
    name = "--ca" if given else _CA_FILE
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:  # an SSLError is an OSError; for the reader
        raise UserError(
            f"{name} names {path}, which holds no certificate that can be read: {error}. Give a PEM file."
        ) from error
    return path


def _check_answers(url: str, tls: ssl.SSLContext | bool, trusted: str | None) -> None:
    """Ray's client has no timeout of its own: a host that drops packets would hold it for minutes."""
    context = tls if isinstance(tls, ssl.SSLContext) else None
    try:
        # `job_server` let http and https pass
        urllib.request.urlopen(f"{url}/api/version", timeout=10, context=context).close()  # noqa: S310
    except urllib.error.HTTPError as answer:
        answer.close()  # 401 without the token: somebody is there, and the client will say who it is
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _untrusted(url, reason, trusted) from error
        if isinstance(reason, ssl.SSLError) and re.search("WRONG_VERSION|HTTP_REQUEST", str(reason)):
            raise UserError(f"{url} does not speak TLS. Use http:// if that is its address.") from error
        raise no_head(url, error) from error


def _untrusted(url: str, reason: ssl.SSLCertVerificationError, trusted: str | None) -> UserError:
    by = f"by an authority in {trusted}" if trusted else "by an authority that this system knows"
    return UserError(
        f"The certificate of {url} is not vouched for {by}: {reason.verify_message}. "
        f"Give the file of the authority that signed it with --ca FILE, or {_CA_FILE}."
    )


@contextmanager
def _environment_address(url: str) -> Iterator[None]:
    """Ray lets this variable win over the address that its client is given."""
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = url
    try:
        yield
    finally:
        os.environ.pop(_ADDRESS)
        if before is not None:
            os.environ[_ADDRESS] = before
