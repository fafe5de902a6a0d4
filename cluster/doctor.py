"""The checks of the services' state and of what must be secret: none needs torch, and each is a plain function.

Each returns (status, detail, advice), status one of pass, warn and fail. `Addresses` are what a run would use.
"""

from __future__ import annotations

import ipaddress
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cluster import services
from cluster.credentials import CredentialFiles, Secrets
from cluster.nodes import Outcome, judge_clock
from cluster.settings import service_dir

_ANSWER_S = 5.0
_OFF = ("false", "0", "no")
_OTHERS = ((stat.S_IRGRP, stat.S_IXGRP), (stat.S_IROTH, stat.S_IXOTH))  # may read a file, may go through a folder
_CLIENT_FILES = {"AWS_SHARED_CREDENTIALS_FILE": ".aws/credentials", "RAY_AUTH_TOKEN_PATH": ".ray/auth_token"}


class Addresses(NamedTuple):
    """Where a run's services are: URLs, and `host:port` of the Ray head; empty where there is none."""

    s3: str
    mlflow: str
    ray: str
    jobs: str

    @property
    def urls(self) -> dict[str, str]:
        """Those with a scheme, by what they are."""
        named = {"S3": self.s3, "MLflow": self.mlflow, "Ray's job server": self.jobs}
        return {name: url for name, url in named.items() if url.startswith("http")}

    @property
    def hosts(self) -> dict[str, str]:
        """Host of every service on the network, by what it is."""
        hosts = {name: urlsplit(url).hostname or "" for name, url in self.urls.items()}
        return hosts | ({"Ray": self.ray.rpartition(":")[0].strip("[]")} if ":" in self.ray else {})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def local_services(home: Path) -> Outcome:
    """What `agmm up` started works."""
    found = services.status(home)
    if not found:
        return "pass", f"none of `agmm up` in {home}: a run uses what the environment names, or files", ""
    bad = [f"{each.service} is {each.state} ({each.detail})" for each in found if each.state != "running"]
    if bad:
        return "fail", "; ".join(bad) + ".", "Run `agmm down`, then `agmm up`."
    return "pass", ", ".join(f"{each.service} {each.url}" for each in found), ""


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


def ray_token(addresses: Addresses) -> Outcome:
    """A Ray head lets nobody in without a token: whoever reaches one without runs code as its user."""
    if not addresses.ray and not addresses.jobs:
        return "pass", "no head: a run's own Ray listens on loopback", ""
    hosts = [host for name, host in addresses.hosts.items() if name.startswith("Ray")]
    far = not all(map(is_loopback, hosts))
    advice = "Start the head with RAY_AUTH_MODE=token (`agmm up` does), and set it here with RAY_AUTH_TOKEN_PATH."
    if addresses.jobs and _status(f"{addresses.jobs}/api/version") == 200:
        return (
            "fail" if far else "warn",
            f"{addresses.jobs} runs jobs of anyone who reaches it, without a token.",
            advice,
        )
    if os.environ.get("RAY_AUTH_MODE") != "token":
        words = f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE') or 'not set'}, not token, for {', '.join(hosts)}."
        return "fail" if far else "warn", words, advice
    return "pass", "the head asks for a token", ""


def mlflow_password(addresses: Addresses) -> Outcome:
    """MLflow lets nobody in without a password."""
    if not addresses.mlflow.startswith("http"):
        return "pass", f"{addresses.mlflow} is a file", ""
    code = _status(f"{addresses.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0")
    if code is None:
        return "warn", f"not looked at: {addresses.mlflow} does not answer.", "See the check `mlflow`."
    if code in (401, 403):
        return "pass", f"{addresses.mlflow} asks for a password", ""
    near = is_loopback(urlsplit(addresses.mlflow).hostname or "")
    words = f"{addresses.mlflow} answers anyone who reaches it, without a password."
    return "warn" if near else "fail", words, "Start it with --app-name basic-auth, as `agmm up` does."


def _status(url: str) -> int | None:
    """The status of a GET without credentials; None where nothing answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=_ANSWER_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError):
        return None


def encrypted(addresses: Addresses) -> Outcome:
    """What leaves this machine is encrypted."""
    hosts = addresses.hosts
    plain = [
        f"{name} at {url}"
        for name, url in addresses.urls.items()
        if url[:5] == "http:" and not is_loopback(hosts[name])
    ]
    if plain:
        return (
            "warn",
            f"passwords and data go unencrypted to {', '.join(plain)}.",
            "Use https://, or a tunnel (ssh -L).",
        )
    return "pass", "no http:// address beyond this machine", ""


def listeners(addresses: Addresses) -> Outcome:
    """Services that are used on loopback listen there only."""
    try:
        import psutil
    except ImportError:
        return "warn", "not looked at: psutil is not installed.", "pip install psutil"
    wanted = {urlsplit(f"//{place}").port: name for name, place in _places(addresses)}
    heard = [each.laddr for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr]
    wide = sorted(f"{wanted[port]} on {ip}:{port}" for ip, port in heard if port in wanted and not _is_local_ip(ip))
    if not wide:
        return "pass", "what is used on loopback listens there only", ""
    advice = "Bind it to 127.0.0.1 (--host, -ip.bind, --node-ip-address), or put TLS and a password before it."
    open_doors = mlflow_password(addresses)[0] != "pass" or ray_token(addresses)[0] != "pass"
    return "fail" if open_doors else "warn", f"other machines reach {', '.join(wide)}.", advice


def _places(addresses: Addresses) -> Iterator[tuple[str, str]]:
    """(name, host:port) of every service that is addressed on loopback."""
    places = {name: urlsplit(url).netloc for name, url in addresses.urls.items()} | {"Ray": addresses.ray}
    return ((name, places[name]) for name, host in addresses.hosts.items() if is_loopback(host))


def _is_local_ip(ip: str) -> bool:
    return ipaddress.ip_address(ip.removeprefix("::ffff:")).is_loopback


def no_secret_shown(home: Path) -> Outcome:
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
    runtime = " ".join(os.environ.get(name, "") for name in ("RAY_RUNTIME_ENV", "RAY_JOB_CONFIG_JSON_ENV_VAR"))
    if any(secret in runtime for secret in secrets):
        words = "the runtime environment of this Ray job holds a secret, and the dashboard shows it."
        return "fail", words, "Give secrets to the head's own environment, as `agmm up` does, and renew this one."
    return "pass", f"none of {len(secrets)} known secrets is in arguments or in a runtime environment", ""


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


def s3_clock(addresses: Addresses) -> Outcome:
    """The S3 server's clock is near this one's, by the Date of its answer, which needs no credentials."""
    if not addresses.s3:
        return "pass", "no S3", ""
    asked = time.time()
    date = _date(addresses.s3)
    took = time.time() - asked
    if date is None:
        return "warn", f"not looked at: {addresses.s3} tells no date.", "See the check `checkpoints`."
    # its seconds are cut off
    return judge_clock(f"the clock of S3 at {addresses.s3}", date + 0.5 - (asked + took / 2), 0.5 + took / 2)


def _date(url: str) -> float | None:
    near = is_loopback(urlsplit(url).hostname or "")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if near else []))
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=_ANSWER_S) as answer:  # noqa: S310
            text = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            text = error.headers.get("Date")
    except (OSError, ValueError):
        return None
    return parsedate_to_datetime(text).timestamp() if text else None


def service_checks(home: Path, addresses: Addresses) -> dict[str, Callable[[], Outcome]]:
    """The checks of this module by name."""
    return {
        "services": lambda: local_services(home),
        "secret files": lambda: secret_files(home),
        "secrets shown": lambda: no_secret_shown(home),
        "ray token": lambda: ray_token(addresses),
        "mlflow password": lambda: mlflow_password(addresses),
        "listeners": lambda: listeners(addresses),
        "encryption": lambda: encrypted(addresses),
        "model code": no_code_in_models,
        "s3 clock": lambda: s3_clock(addresses),
    }
