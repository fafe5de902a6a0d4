"""Make the bucket of AGMM_STORE, as the environment's credentials open it: python -m cluster.bucket. Once, or again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from cluster.errors import ServiceError, UserError
from cluster.probes import failures, prepare_bucket


def bucket_name(environ: Mapping[str, str]) -> str:
    """Read the bucket from AGMM_STORE. UserError if that is not s3://bucket, with or without a prefix."""
    store = environ.get("AGMM_STORE", "")
    name = store.removeprefix("s3://").split("/")[0]
    if not store.startswith("s3://") or not name:
        raise UserError(f"AGMM_STORE must be s3://bucket for a bucket to be made, got {store!r}.")
    return name


def make(bucket: str, timeout: float = 60.0) -> None:
    """Make `bucket` and see that it takes and gives objects. ServiceError if it does not within `timeout` seconds."""
    import boto3

    client = boto3.session.Session().client("s3")
    deadline = time.monotonic() + timeout
    expected = failures()
    while True:
        try:
            return prepare_bucket(client, bucket)
        except expected as error:
            if time.monotonic() > deadline:
                raise ServiceError(f"Bucket {bucket} cannot be used after {timeout:.0f} s: {error}") from error
        time.sleep(1.0)


def main() -> int:
    """Make the bucket and return the exit code."""
    try:
        name = bucket_name(os.environ)
        make(name)
    except (UserError, ServiceError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    sys.stderr.write(f"bucket {name} is ready\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
