"""What went wrong at an S3 server, in words, and whether it may pass."""

from __future__ import annotations

from typing import NamedTuple

from boto3.exceptions import Boto3Error, S3UploadFailedError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError

FAILURES = (BotoCoreError, ClientError, Boto3Error, ResponseParserError, OSError)
# At the first contact these are a wrong address or set-up; later the server is starting anew.
UNREACHED = (EndpointConnectionError, ConnectTimeoutError, CredentialRetrievalError)

_CUT = (ConnectionClosedError, ResponseStreamingError, IncompleteReadError, ResponseParserError, FlexibleChecksumError)
_PASSING_CODES = {
    "BadDigest",  # damaged on the way
    "ConditionalRequestConflict",  # two conditional writes at once; AWS asks for a repetition
    "InternalError",
    "NoSuchUpload",  # the answer to its completion was lost, or another took it for left over: send it anew
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "XAmzContentSHA256Mismatch",  # damaged on the way, too
}
_PASSING_STATUS = (429, 500, 502, 503, 504)


class Explained(NamedTuple):
    """What is wrong, and what to do about it."""

    what: str
    todo: str


_WRONG_KEYS = Explained(
    "the credentials are wrong",
    "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file and profile that AWS_SHARED_CREDENTIALS_FILE and "
    "AWS_PROFILE name; for the local services, run `agmm status`.",
)
_DENIED = Explained(
    "the credentials do not allow it",
    "Check that they belong to this server and that their policy lets them list, read, write and delete in this "
    "bucket; a bucket that is not there may be refused in this way too.",
)
_EXPIRED = Explained(
    "the session token of the credentials has expired or is not valid",
    "Log in again, or renew AWS_SESSION_TOKEN; roles of machines and pods renew theirs by themselves.",
)
_NO_KEYS = Explained(
    "there are no complete credentials",
    "Set AWS_SHARED_CREDENTIALS_FILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
    "for the local services, run `agmm up`.",
)
_NO_BUCKET = Explained("the bucket does not exist", "Create it, or correct the address (checkpoint.uri, AGMM_STORE).")
NO_KEY = Explained("it is not there", "Check the bucket and the address.")
_REGION = Explained("the bucket lies in another region", "Set AWS_DEFAULT_REGION to the bucket's.")
_CLOCK = Explained("this machine's clock and the server's differ", "Set the clock.")
_CHANGED = Explained("it was written anew while it was being read", "Read it again.")
_BUSY = Explained("the server keeps failing", "Look at its log or its provider's status page; then try again.")
_SILENT = Explained(
    "the server does not answer", "Check that it is up (`agmm status`), AWS_ENDPOINT_URL_S3 and the network."
)
_BREAKING = Explained(
    "the connection keeps breaking", "Check the network, proxies in between (NO_PROXY) and the server's log."
)
_CERTIFICATE = Explained("the server's certificate is not trusted", "Set AWS_CA_BUNDLE to the right authority.")
_DISK = Explained("a local file cannot be used", "Check its folder, its permissions and the disk.")
_OTHER = Explained(
    "it is not understood by both sides", "Check AWS_ENDPOINT_URL_S3, AWS_CONFIG_FILE and the bucket's name."
)

_CODES = {
    "403": _DENIED,  # numbers: an answer without a body that would tell more
    "404": NO_KEY,
    "412": _CHANGED,
    "AccessDenied": _DENIED,
    "AuthorizationHeaderMalformed": _REGION,
    "ExpiredToken": _EXPIRED,
    "InvalidAccessKeyId": _WRONG_KEYS,
    "InvalidToken": _EXPIRED,
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchKey": NO_KEY,
    "PermanentRedirect": _REGION,
    "PreconditionFailed": _CHANGED,
    "RequestTimeTooSkewed": _CLOCK,
    "SignatureDoesNotMatch": _WRONG_KEYS,
    "TokenRefreshRequired": _EXPIRED,
}
_KINDS = (
    ((NoCredentialsError, PartialCredentialsError, CredentialRetrievalError), _NO_KEYS),
    (SSLError, _CERTIFICATE),
    (_CUT, _BREAKING),
    (EndpointConnectionError, _SILENT),
    (HTTPClientError, _BREAKING),
    (BotoCoreError, _OTHER),
    (OSError, _DISK),
)


def cause_of(error: BaseException) -> BaseException:
    """What boto3's upload made a sentence of, or the error itself."""
    return error.__context__ or error if isinstance(error, S3UploadFailedError) else error


def code_of(error: BaseException) -> str:
    """The server's name for an error, such as `NoSuchKey`; empty for one that it did not send."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def status_of(error: ClientError) -> int:
    """The status, such as 412. It holds where the code does not: for HEAD, and where the answer's body broke off."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later: 5xx, throttling, and whatever cuts or delays a connection."""
    if isinstance(error, ClientError):
        return status_of(error) in _PASSING_STATUS or code_of(error) in _PASSING_CODES
    if isinstance(error, SSLError):
        return False
    return isinstance(error, (*_CUT, *UNREACHED, HTTPClientError))


def is_timeout(error: BaseException | None) -> bool:
    """Whether waiting ended it, for an answer, a connection, or room to send: botocore calls that one closed."""
    while error is not None and not isinstance(error, (ReadTimeoutError, ConnectTimeoutError, TimeoutError)):
        error = error.__context__
    return error is not None


def explain(error: BaseException) -> Explained:
    """What is wrong and what to do, for one of FAILURES."""
    if isinstance(error, ClientError):
        return _CODES.get(code_of(error), _BUSY if is_passing(error) else _OTHER)
    if is_timeout(error):
        return _SILENT
    return next((words for kinds, words in _KINDS if isinstance(error, kinds)), _OTHER)
