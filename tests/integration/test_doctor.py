"""`agmm doctor` finds faults that are planted one by one, in real services where it takes some, and names the cure."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from cluster import services
from cluster.credentials import CredentialFiles
from cluster.environment import CONFLICTING
from cluster.probes import known_secrets
from cluster.settings import ServiceSettings
from pipelines import cli
from tests.s3_proxy import S3Proxy

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    settings = ServiceSettings(home=home, s3_port=0, mlflow_port=0, dashboard_port=0, ray_port=0, num_cpus=2)
    try:
        yield services.up(settings)
    finally:
        services.down(home)


@pytest.fixture
def client(running, monkeypatch):
    """This process's environment points at the services."""
    for name in CONFLICTING:
        monkeypatch.delenv(name, raising=False)
    for name, value in services.environment(running.home).items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture
def recipe(tiny_tree, tmp_path):
    """A recipe that leaves its addresses to the environment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_tree, "checkpoint": {}, "tracking": {}}))
    return str(path)


@pytest.fixture
def doctor(capsys):
    """The checks of `agmm doctor --json`, by name, and its exit code under `code`."""

    def call(*words, only=()):
        chosen = [word for name in only for word in ("--only", name)]
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", *words, *chosen, "--json"])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        checks = {check["name"]: check for check in json.loads(shown.out)["checks"]}
        assert ended.value.code == int(any(check["status"] == "fail" for check in checks.values()))
        return checks

    return call


def _failed(checks, name, *words):
    """The check failed, and says these words."""
    check = checks[name]
    assert check["status"] == "fail", check
    said = f"{check['detail']} {check['advice']}"
    assert [word for word in words if word not in said] == [], said


def test_what_is_well_passes(client, recipe, doctor):
    checks = doctor(recipe)
    assert {name: check for name, check in checks.items() if check["status"] == "fail"} == {}
    assert set(checks) == set(cli.doctor._SERVICES + cli.doctor._RECIPE) - {"hours"}
    assert {checks[name]["status"] for name in ("checkpoints", "mlflow", "ray", "versions", "data", "memory")} == {
        "pass"
    }


def test_wrong_s3_keys(client, doctor, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    checks = doctor(only=["checkpoints"])
    _failed(checks, "checkpoints", "the credentials are wrong", "AWS_SECRET_ACCESS_KEY")
    assert "planted-secret" not in str(checks)


def test_a_bucket_that_is_not_there(client, recipe, doctor):
    checks = doctor(recipe, "--set", "checkpoint.uri=s3://no-such-bucket/x", only=["checkpoints"])
    _failed(checks, "checkpoints", "Cannot write", "s3://no-such-bucket/x", "bucket")


def test_a_bucket_that_refuses_to_delete(client, doctor, monkeypatch):
    with S3Proxy(client.ports.s3) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        assert doctor(only=["checkpoints"])["checkpoints"]["status"] == "pass"
        proxy.fault("403", r"POST .*\?delete")
        _failed(doctor(only=["checkpoints"]), "checkpoints", "Cannot delete in s3://agmm", "policy lets them")


def test_mlflow_that_is_down(client, doctor, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    _failed(doctor(only=["mlflow"]), "mlflow", "MLflow at http://127.0.0.1:9 failed", "agmm status")


def test_a_wrong_mlflow_password(client, doctor, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-secret")
    checks = doctor(only=["mlflow"])
    _failed(checks, "mlflow", client.mlflow_url, "credentials")
    assert "planted-secret" not in str(checks)


def test_a_wrong_ray_token(client, recipe, doctor, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("0" * 48)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    checks = doctor(recipe, only=["ray", "versions", "workers"])
    _failed(checks, "ray", "refuses the token", "RAY_AUTH_TOKEN_PATH")
    for name in ("versions", "workers"):
        assert (checks[name]["status"], checks[name]["detail"][:13]) == ("warn", "not looked at")


def test_a_ray_head_that_is_down(client, doctor, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    _failed(doctor(only=["ray"]), "ray", "No Ray head answers at 127.0.0.1:9", "agmm up")


@pytest.mark.slow
def test_a_node_with_another_version(client, doctor, monkeypatch, tmp_path):
    root = Path(cli.__file__).parents[2]
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for package in ("agmm", "pipelines", "cluster"):
        shutil.copytree(root / package, tmp_path / "other" / package, ignore=ignore)
    with (tmp_path / "other" / "agmm" / "neuron.py").open("a") as file:
        file.write("\n# an older leak\n")
    about = tmp_path / "other" / "agmm-0.0.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: agmm\nVersion: 0.0.9\n")
    monkeypatch.chdir(tmp_path)  # Ray has workers import from the driver's folder first
    assert doctor(only=["versions"])["versions"]["status"] == "pass"
    with _second_node(client, tmp_path / "other"):
        checks = doctor(only=["ray", "versions"])
    assert checks["ray"]["detail"].startswith("2 nodes")
    _failed(checks, "versions", "agmm 0.0.9, here 0.1.0", "agmm's code", "the same commit")


_NODE = """
import sys, time
from ray._private.node import Node
from ray._private.parameter import RayParams

# what `ray start` would do, which takes loopback for a mistake
Node(
    RayParams(gcs_address=sys.argv[1], node_ip_address="127.0.0.1", num_cpus=1, min_worker_port=0, max_worker_port=0,
              node_manager_port=0, dashboard_agent_listen_port=0, include_log_monitor=False),
    head=False,
)
time.sleep(600)
"""


class _second_node:  # noqa: N801
    """Another Ray node on this machine, whose workers import from `folder`, until the context ends."""

    def __init__(self, running, folder):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NODE, running.ray_address],
            env={**os.environ, "PYTHONPATH": str(folder)},
            cwd=folder,
        )
        self._running = running

    def __enter__(self):
        deadline = time.monotonic() + 60
        while not services.status(self._running.home)[2].detail.endswith("2 nodes"):
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.3)

    def __exit__(self, *_):
        import psutil

        family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
        self._process.terminate()
        for process in psutil.wait_procs(family, timeout=15)[1]:
            process.kill()
        self._process.wait()


def test_a_clock_that_is_wrong(client, doctor, monkeypatch):
    with S3Proxy(client.ports.s3, ahead=3600.0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        _failed(doctor(only=["s3 clock"]), "s3 clock", "ahead of this machine's", "refuses signatures", "NTP")
        proxy.ahead = -60.0
        check = doctor(only=["s3 clock"])["s3 clock"]
        assert (check["status"], "behind this machine's" in check["detail"]) == ("warn", True)


def test_a_secret_that_others_may_read(client, doctor):
    path = CredentialFiles(client.home).aws
    path.chmod(0o644)
    try:
        _failed(doctor(only=["secret files"]), "secret files", f"chmod 600 {path}")
    finally:
        path.chmod(0o600)


def test_a_secret_in_arguments(client, doctor):
    secret = known_secrets(client).mlflow_password
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", f"--password={secret}"]) as shown:
        try:
            checks = doctor(only=["secrets shown"])
        finally:
            shown.kill()
    _failed(checks, "secrets shown", f"process {shown.pid}", "file of mode 0600")
    assert secret not in str(checks)


def test_a_secret_in_the_runtime_environment_of_a_job(client, doctor):
    from ray.job_submission import JobSubmissionClient

    from cluster.jobs.client import authorization

    secret = known_secrets(client).mlflow_password
    head = JobSubmissionClient(client.dashboard_url, headers=authorization(client.dashboard_url))
    assert doctor(only=["secrets shown"])["secrets shown"]["status"] == "pass"
    job = head.submit_job(entrypoint="true", runtime_env={"env_vars": {"PASSWORD": secret}})
    while head.get_job_status(job) not in ("SUCCEEDED", "FAILED"):  # until then it is in arguments, too
        time.sleep(0.2)
    checks = doctor(only=["secrets shown"])
    head.delete_job(job)
    _failed(checks, "secrets shown", "runtime environment of a Ray job", "agmm up")
    assert secret not in str(checks)


def test_mlflow_without_a_password_that_listens_everywhere(client, doctor, monkeypatch):
    class Anyone(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Anyone) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
        checks = doctor(only=["mlflow password", "listeners"])
        server.shutdown()
    assert checks["mlflow password"]["status"] == "warn"
    assert "basic-auth" in checks["mlflow password"]["advice"]
    _failed(checks, "listeners", "0.0.0.0", "Bind it to 127.0.0.1")


def test_an_unknown_key(recipe, doctor):
    checks = doctor(recipe, "--set", "optim.rate=1", only=["model code"])
    _failed(checks, "recipe", "optim.rate: unknown key. Known here: optimizer, ")


def test_a_damaged_data_file(recipe, doctor, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "damaged")
    path = tmp_path / "damaged" / "train.beton"
    where = ("--set", f"data.uri={tmp_path / 'damaged'}")
    assert doctor(recipe, *where, only=["data"])["data"]["status"] == "pass"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    _failed(doctor(recipe, *where, only=["data"]), "data", f"{path} is damaged", "agmm data build")


def test_a_batch_that_memory_does_not_hold(recipe, doctor):
    checks = doctor(recipe, "--set", "data.batch_size=100000000", only=["memory"])
    _failed(checks, "memory", "data.batch_size up to", "Set data.batch_size to")


@pytest.mark.parametrize(
    ("place", "check", "words"),
    [
        ("/dev/shm", "shared memory", ("/dev/shm", "--shm-size")),
        ("cache", "disk", ("cache on this machine", "AGMM_CACHE")),
    ],
)
def test_a_disk_that_is_too_small(place, check, words, tmp_path, monkeypatch):
    """A file system of 16 MiB, mounted where only the command and what it starts see it."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("AGMM_CACHE", str(tmp_path / "cache"))
    mount = f"mount -t tmpfs -o size=16m tmpfs {place if place.startswith('/') else tmp_path / place} || exit 77; "
    command = [sys.executable, "-m", "pipelines.cli", "doctor", "--only", check, "--json"]
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount + 'exec "$@"', "sh", *command], capture_output=True, text=True, check=False
    )
    if ended.returncode == 77 or "unshare" in ended.stderr:
        pytest.skip("no file system can be mounted here")
    assert ended.returncode == 1, ended.stderr
    _failed({each["name"]: each for each in json.loads(ended.stdout)["checks"]}, check, *words)


@pytest.mark.slow
def test_a_dry_run_leaves_nothing(tiny_tree, tmp_path, capsys):
    import mlflow

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_tree))
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(path), "--dry-run", "--price-per-hour", "1:2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0, result
    assert result["checks"][-1]["name"] == "hours"
    assert 0 < result["hours"]["low"] <= result["hours"]["high"]
    assert (result["price"]["low"], result["price"]["high"]) == (result["hours"]["low"], 2 * result["hours"]["high"])
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.search_runs([each.experiment_id for each in client.search_experiments()]) == []
    assert client.search_registered_models() == []
    assert [each for each in (tmp_path / "checkpoints").rglob("*") if each.is_file()] == []
    assert [each for each in (tmp_path / "home").rglob("*") if each.is_file()] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["doctor", "no_such_recipe"], "Unknown recipe 'no_such_recipe'"),
        (["train", "no_such_recipe", "--dry-run"], "Unknown recipe 'no_such_recipe'"),
        (["train", "cifar10_resnet19", "--dry-run", "--resume"], "Leave one out"),
        (["doctor", "cifar10_resnet19", "--price-per-hour", "2:1"], "LOW:HIGH"),
        (["doctor", "--calibrate"], "Name one"),
    ],
)
def test_a_mistake_in_the_command_ends_with_2(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
