"""The checks of the services: their state, who is let in and from where, and their clock.

Each returns (status, detail, advice), status one of pass, warn and fail. `Addresses` are what a run would use.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cluster import services
from cluster.nodes import Outcome, judge_clock
from cluster.secrecy import secrecy_checks

_ANSWER_S = 5.0


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
    try:
        with _opener(url).open(url, timeout=_ANSWER_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError):
        return None


def _opener(url: str) -> urllib.request.OpenerDirector:
    """Past a proxy for loopback, which it cannot reach; with the authority that boto3 or MLflow are told to believe."""
    authorities = (os.environ.get("AWS_CA_BUNDLE"), os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    context = ssl.create_default_context()
    for path in filter(None, authorities):
        context.load_verify_locations(path)
    near = is_loopback(urlsplit(url).hostname or "")
    direct = [urllib.request.ProxyHandler({})] if near else []
    return urllib.request.build_opener(*direct, urllib.request.HTTPSHandler(context=context))


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
    try:
        with _opener(url).open(urllib.request.Request(url, method="HEAD"), timeout=_ANSWER_S) as answer:  # noqa: S310
            text = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            text = error.headers.get("Date")
    except (OSError, ValueError):
        return None
    return parsedate_to_datetime(text).timestamp() if text else None


def service_checks(home: Path, addresses: Addresses) -> dict[str, Callable[[], Outcome]]:
    """The checks of this module and of `secrecy` by name."""
    return {
        "services": lambda: local_services(home),
        **secrecy_checks(home, addresses.jobs),
        "ray token": lambda: ray_token(addresses),
        "mlflow password": lambda: mlflow_password(addresses),
        "listeners": lambda: listeners(addresses),
        "encryption": lambda: encrypted(addresses),
        "s3 clock": lambda: s3_clock(addresses),
    }
