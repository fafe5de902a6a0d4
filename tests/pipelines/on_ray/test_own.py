"""A Ray of a run's own: what it listens on and leaves in the file system gives nobody else on the machine access."""

import http.client
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.errors import ServiceError
from pipelines.on_ray import own

_RUN = """
import json, sys
import ray
from pipelines.on_ray.driver import connected

with connected(needed=1, wanted=1, say=lambda line: None):
    node = ray._private.worker._global_node
    told = {"gcs": node.gcs_address, "session": node.get_session_dir_path()}
    print(json.dumps(told), file=sys.__stdout__, flush=True)
    sys.stdin.read()
"""
_STRANGER = """
import sys
from ray._raylet import GcsClient

print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10))
"""


@pytest.fixture
def short(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "_SHORT", tmp_path)
    return tmp_path / f"agmm-ray-{os.getuid()}"


@pytest.fixture
def environ(monkeypatch):
    """Variables that may be set, of which none stays."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    monkeypatch.setattr(os, "environ", kept)
    return kept


def test_the_token_is_the_users_alone_and_stays(short, environ):
    first = own.own_ray(2)
    path = Path(environ["RAY_AUTH_TOKEN_PATH"])
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(short.stat().st_mode) == 0o700
    del environ["RAY_AUTH_TOKEN_PATH"]
    assert own.own_ray(2) == first
    assert path.read_text() == token
    assert sorted(each.name for each in short.iterdir()) == ["token"]


def test_what_the_user_has_set_is_left(short, environ):
    environ |= {"RAY_AUTH_TOKEN": "x", "RAY_TMPDIR": "/elsewhere", "RAY_enable_metrics_collection": "1"}
    assert "_temp_dir" not in own.own_ray(2)
    assert "RAY_AUTH_TOKEN_PATH" not in environ
    assert environ["RAY_enable_metrics_collection"] == "1"


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_others_can_enter_is_refused(short, environ, kind, tmp_path):
    if kind == "open":
        short.mkdir(mode=0o755)
    elif kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        short.symlink_to(tmp_path / "theirs")
    else:
        short.touch(mode=0o700)
    with pytest.raises(ServiceError, match="nobody else can enter"):
        own.own_ray(2)


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_strangers_are_kept_out():
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-c", _RUN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kept) as run:
        told = json.loads(run.stdout.readline())
        session = Path(told["session"])
        assert any(stat.S_IMODE(each.stat().st_mode) == 0o700 for each in session.parents)
        ports = _ports(run.pid)
        assert len(ports) > 3
        assert {ip for ip, _ in ports} <= {"127.0.0.1", "::1"}, ports
        assert [port for _, port in ports if _tells_metrics(port)] == []
        stranger = [sys.executable, "-c", _STRANGER, told["gcs"]]
        disabled = {**kept, "RAY_AUTH_MODE": "disabled"}
        refused = subprocess.run(stranger, env=disabled, capture_output=True, text=True, timeout=60)
        assert refused.returncode, refused.stdout
        assert "Unauthenticated" in refused.stderr
        token = {**kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_token_of(session))}
        assert subprocess.run(stranger, env=token, check=True, capture_output=True, timeout=60).stdout
        run.stdin.close()
    assert run.returncode == 0


def _token_of(session):
    return next(each / "token" for each in session.parents if (each / "token").exists())


def _ports(pid):
    top = psutil.Process(pid)
    every = [each for process in (top, *top.children(recursive=True)) for each in process.net_connections("tcp")]
    return {(its.laddr.ip.removeprefix("::ffff:"), its.laddr.port) for its in every if its.status == psutil.CONN_LISTEN}


def _tells_metrics(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
