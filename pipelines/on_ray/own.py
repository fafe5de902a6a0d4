"""A Ray of a run's own on this machine, closed to others of it where Ray by itself is not."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.errors import ServiceError

_SHORT = Path("/tmp")  # noqa: S108 names of sockets in a session may have 107 bytes
_CLOSED = {
    # Despite its name it counts on every system: off, Ray keeps 127.0.0.1 instead of turning it into the machine's
    # outer address, at which all its ports would listen.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray asks no token for metrics. Those of nodes and runs can be opened; the other two cannot be switched off, but
    # for a port that does not exist: Ray logs that and goes on without.
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": str(2**16),
    "DASHBOARD_METRIC_PORT": str(2**16),
}
_CREDENTIALS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


def own_ray(cpus: int) -> dict[str, Any]:
    """Arguments of `ray.init` for one on loopback; sets variables that Ray reads, where the user did not.

    Its sessions lie in a folder that others cannot enter: Ray lets them write there. So does the token, which Ray
    would leave for all to read.

    Raises ServiceError where that folder is not the user's own.
    """
    from ray._private import ray_constants

    for name, value in _CLOSED.items():
        os.environ.setdefault(name, value)
    ray_constants.ENABLE_RAY_CLUSTER = False  # as by the first of them, which Ray read when it was imported
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would listen on the host's own address
    folder = _private_folder()
    if not _CREDENTIALS & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(_token(folder))
    own = {} if "RAY_TMPDIR" in os.environ else {"_temp_dir": str(folder / "r")}  # Ray opens the one that it is given
    return {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1", **own}


def _private_folder() -> Path:
    folder = _SHORT / f"agmm-ray-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ServiceError(
            f"{folder}, where Ray is to keep its sessions, must be a folder of yours that nobody else can enter "
            "(mode 700). Remove it, if it is yours, or have an administrator do it."
        )
    return folder


def _token(folder: Path) -> Path:
    """The file of a token that stays: a run beside this one reads it too."""
    path = folder / "token"
    if not path.exists():
        part = folder / f"token.{os.getpid()}"
        part.touch(mode=0o600)
        part.write_text(secrets.token_hex(32), encoding="ascii")
        with suppress(FileExistsError):
            path.hardlink_to(part)
        part.unlink()
    return path
