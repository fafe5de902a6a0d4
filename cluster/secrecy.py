"""The checks of what must be secret: files, arguments, jobs; and that no model runs code of its own.

Each returns (status, detail, advice), status one of pass, warn and fail.
"""

from __future__ import annotations

import os
import stat
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from cluster.credentials import CredentialFiles, Secrets
from cluster.jobs.client import authorization
from cluster.nodes import Outcome
from cluster.settings import service_dir

_ANSWER_S = 5.0
_OFF = ("false", "0", "no")
_OTHERS = ((stat.S_IRGRP, stat.S_IXGRP), (stat.S_IROTH, stat.S_IXOTH))  # may read a file, may go through a folder
_CLIENT_FILES = {"AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials", "RAY_AUTH_TOKEN_PATH": ".ray/auth_token"}


def secret_files(home: Path) -> Outcome:
    """Nobody but the owner reads a file with secrets."""
    own = [path for path in _own_files(home) if path.is_file()]
    others = [path for path in _client_files() if path.is_file()]
    shown = [path for path in own if stat.S_IMODE(path.stat().st_mode) & 0o077] + list(filter(_is_reached, others))
    if shown:
        listed = " ".join(map(str, shown))
        return "fail", f"others may read {listed}.", f"chmod 600 {listed}; and renew what was in it."
    return "pass", f"{len(own) + len(others)} files with secrets, none that others can read", ""


def _own_files(home: Path) -> list[Path]:
    return [*vars(CredentialFiles(home)).values(), service_dir(home) / "state.json"]


def _client_files() -> Iterator[Path]:
    """Where clients look for secrets: at what the environment names, or at their place in the user's home."""
    for name, default in _CLIENT_FILES.items():
        yield Path(os.environ.get(name) or Path.home() / default).expanduser()
    if "MLFLOW_TRACKING_PASSWORD" not in os.environ:
        yield Path.home() / ".mlflow" / "credentials"


def _is_reached(path: Path) -> bool:
    """Whether others may read a file, and go through all folders above it."""
    doors = [folder.stat().st_mode for folder in path.absolute().parents]
    mode = path.stat().st_mode
    return any(mode & read and all(door & enter for door in doors) for read, enter in _OTHERS)


def no_secret_shown(home: Path, jobs: str) -> Outcome:
    """No secret is in a process's arguments or a job's runtime environment: both are shown to others."""
    try:
        import psutil
    except ImportError:
        return "warn", "not looked at: psutil is not installed.", "pip install psutil"
    secrets = _known_secrets(home)
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(secret in word for word in process.info["cmdline"] or [] for secret in secrets):
            words = f"the arguments of process {process.info['pid']} hold a secret, and every user can read them."
            return "fail", words, "Pass it in a file of mode 0600 or in the environment, and renew it."
    if any(secret in text for text in _runtime_environments(jobs) for secret in secrets):
        words = "the runtime environment of a Ray job holds a secret, and the dashboard shows it."
        return "fail", words, "Give secrets to the head's own environment, as `agmm up` does, and renew this one."
    return "pass", f"none of {len(secrets)} known secrets is in arguments or in a runtime environment", ""


def _runtime_environments(jobs: str) -> Iterator[str]:
    """Of the job that this process may be, and of all that the head at `jobs` knows and tells us of."""
    yield from (os.environ.get(name, "") for name in ("RAY_RUNTIME_ENV", "RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if not jobs:
        return
    request = urllib.request.Request(f"{jobs}/api/jobs/", headers=authorization(jobs))  # noqa: S310 (a head's address)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError), direct.open(request, timeout=_ANSWER_S) as answer:
        yield answer.read().decode(errors="replace")


def _known_secrets(home: Path) -> set[str]:
    names = (
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_TOKEN",
    )
    found = {os.environ[name] for name in names if len(os.environ.get(name, "")) >= 8}
    files = CredentialFiles(home)
    if files.secrets.is_file():
        known = Secrets.model_validate_json(files.secrets.read_bytes())
        found |= set(known.model_dump(exclude={"s3_key"}).values())
    return found


def no_code_in_models() -> Outcome:
    """MLflow unpickles no model: a model of ours needs none, and a pickle runs whatever its author wanted."""
    name, allowed = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "MLFLOW_ALLOW_MODEL_CODE_EXECUTION"
    if os.environ.get(allowed, "false").lower() not in _OFF:
        return "fail", f"{allowed} is on: loading a model may run code that came with it.", f"unset {allowed}"
    value = os.environ.get(name)
    if value is None or value.lower() not in _OFF:
        words = f"{name} is {'not set' if value is None else 'on'}: MLflow may unpickle models, which runs their code."
        return "warn" if value is None else "fail", words, f"export {name}=false"
    return "pass", "MLflow unpickles no models", ""


def secrecy_checks(home: Path, jobs: str) -> dict[str, Callable[[], Outcome]]:
    """The checks of this module by name; `jobs` is the address of the job server, empty without one."""
    return {
        "secret files": lambda: secret_files(home),
        "secrets shown": lambda: no_secret_shown(home, jobs),
        "model code": no_code_in_models,
    }
