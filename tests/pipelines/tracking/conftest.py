"""What tests of tracking share: runs in a real MLflow, a server to stop and start, and the scribe's process."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from pipelines.tracking import runs as tracking
from pipelines.tracking.journal import Journal


def open_run(uri, session="s1"):
    """A client and a new run that belongs to a session."""
    client = tracking.connect(uri)
    tags = {tracking.RECIPE_TAG: "tiny", tracking.SESSION_TAG: session}
    return client, client.create_run("0", tags=tags).info.run_id


def journal_of(run_id, uri, said=None, session="s1"):
    return Journal(run_id, session, uri, (said if said is not None else []).append)


def steps(client, run_id, key):
    """The steps of a metric, in the order of the store, doubles and all."""
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def state(client, run_id):
    run = client.get_run(run_id)
    return run.info.status, run.data.tags.get("agmm.cause")


def wait_for(what, timeout=30.0):
    """Wait until `what()` is true; returns the seconds it took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < timeout, "it did not come to be in time"
        time.sleep(0.05)
    return time.monotonic() - started


def scribes(run_id):
    """The processes that send a run's journal."""
    return [
        process for process in psutil.process_iter(["cmdline"]) if _is_scribe(process.info["cmdline"] or [], run_id)
    ]


def _is_scribe(words, run_id):
    return run_id in words and "pipelines.tracking.scribe" in words


@pytest.fixture
def parts():
    """The functions of this file."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A data base that MLflow has made, which takes it seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def server(tmp_path, empty_store):
    """A server that runs; a test may stop it and start it again."""
    shutil.copyfile(empty_store, tmp_path / "server.db")
    running = Server(tmp_path)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def store(tmp_path, empty_store):
    """The address of a SQLite file."""
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


class Server:
    """An MLflow server on loopback with a data base of its own, which stays when it stops."""

    def __init__(self, folder):
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self._port}", "--workers=1"]
        places = [
            f"--backend-store-uri=sqlite:///{self._folder}/server.db",
            f"--artifacts-destination={self._folder}/art",
        ]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([*command, *places], stdout=log, stderr=log)
        wait_for(self._answers, 90)

    def _answers(self):
        assert self._process.poll() is None, (self._folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self):
        if self._process is None:
            return
        family = [self._process, *psutil.Process(self._process.pid).children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        self._process.wait()
        self._process = None
