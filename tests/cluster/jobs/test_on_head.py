"""Jobs on a real Ray head, plain and behind TLS, whose agmm is not quite this one."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import jobs
from cluster.errors import ServiceError, UserError
from cluster.jobs import follow as following
from cluster.jobs.code import describe
from cluster.jobs.probe import code_to_send, head_installation
from cluster.jobs.submission import on_head
from cluster.settings import Services
from tests.tls_proxy import Authority, TLSProxy

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.timeout(240)]

# which agmm a job has, and a task that it starts
WHICH = (
    "import ray, pipelines.version\n"
    "def other(): return hasattr(__import__('pipelines.version').version, 'OTHER')\n"
    "ray.init(logging_level='ERROR')\n"
    "print('other', other(), ray.get(ray.remote(other).remote()))\n"
)


@pytest.fixture
def head(client: Services) -> Iterator[jobs.Head]:
    with jobs.connected() as found:
        yield found


def _quiet(_: str) -> None:
    pass


def _until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_job_gives_its_output_exit_code_and_who_it_was(head: jobs.Head, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    command = ["python", "-c", "import sys; print('hello'); sys.exit(3)"]
    assert jobs.submit(head, command, shared=True, about={"recipe": "tiny"}, say=said.append) == 3
    assert "hello\n" in capsys.readouterr().out
    assert "failed" in said[-1]
    newest = jobs.jobs_list(head)[0]
    assert (newest.status, newest.exit_code) == ("FAILED", 3)
    assert newest.started is not None
    assert newest.ended is not None
    assert newest.started < newest.ended
    assert "hello\n" in jobs.job_logs(head, newest.id)
    assert jobs.job_of(head, newest.id) == newest
    assert (newest.metadata["recipe"], newest.metadata["host"]) == ("tiny", socket.gethostname())
    assert jobs.job_follow(head, newest.id, _quiet) == 3
    assert capsys.readouterr().out.count("hello\n") == 1


def test_a_job_can_use_every_service_and_gets_what_it_needs(
    client: Services,
    head: jobs.Head,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text("name: shipped\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tool.py").write_text("WORD = 'my own module'\n")
    script = (
        "import boto3, os, pathlib, ray, sys, urllib.request, mine.tool\n"
        "print(pathlib.Path(sys.argv[1]).read_text(), mine.tool.WORD)\n"
        "boto3.client('s3').put_object(Bucket=os.environ['AGMM_STORE'][5:], Key='from-a-job', Body=b'x')\n"
        "ray.init()\n"
        "print('cpus', ray.cluster_resources()['CPU'], os.environ['AGMM_HOME'], sys.executable)\n"
    )
    command = ["python", "-c", script, str(tmp_path / "recipe.yaml")]
    assert jobs.submit(head, command, shared=True, include=["mine"], say=_quiet) == 0
    out = capsys.readouterr().out
    assert "name: shipped\n my own module\n" in out
    assert f"cpus 1.0 {client.home} {Path(sys.executable).parent}" in out


def test_a_head_with_another_agmm_gets_this_one(head: jobs.Head, capsys: pytest.CaptureFixture[str]) -> None:
    before = {job.id for job in jobs.jobs_list(head)}
    theirs, ours = head_installation(head, _quiet), describe()
    assert theirs["code"] != ours["code"]
    assert {key: theirs[key] for key in ("version", "python", "platform", "missing")} == {
        key: ours[key] for key in ("version", "python", "platform", "missing")
    }
    assert {job.id for job in jobs.jobs_list(head)} == before  # asking left nothing

    said: list[str] = []
    assert jobs.submit(head, ["python", "-c", WHICH], say=said.append) == 0
    assert "other False False" in capsys.readouterr().out
    assert any("goes along" in line for line in said)
    assert jobs.submit(head, ["python", "-c", WHICH], with_code=False, say=_quiet) == 0
    assert "other True True" in capsys.readouterr().out


def test_a_command_that_has_no_use_for_agmm_is_not_asked_about(head: jobs.Head) -> None:
    assert code_to_send(head, "true", None, shared=False, say=pytest.fail) == ({}, True)


def test_a_head_of_another_kind_gets_no_compiled_library(head: jobs.Head, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.jobs import probe

    theirs = {**describe(), "platform": "linux-riscv64", "version": "", "code": ""}
    monkeypatch.setattr(probe, "head_installation", lambda *_: theirs)
    said: list[str] = []
    code = code_to_send(head, "agmm", None, shared=False, say=said.append)
    assert not code.installed
    assert [name for name in code.files if name.endswith(".so")] == []
    assert "linux-riscv64" in said[1]
    assert on_head(["agmm", "train", "tiny"], code) == ["python", "-m", "pipelines.cli", "train", "tiny"]
    monkeypatch.setattr(probe, "head_installation", lambda *_: {**theirs, "missing": ["torch"]})
    with pytest.raises(UserError, match=r"lacks packages.*: torch\."):
        code_to_send(head, "agmm", None, shared=False, say=_quiet)


def test_the_same_command_runs_once_at_a_time(head: jobs.Head) -> None:
    """Of several who press at the same moment one is taken; the others hear its id."""
    began, ended = threading.Barrier(3), []

    def press() -> None:
        began.wait()
        try:
            ended.append(jobs.submit(head, ["sleep", "300"], shared=True, wait=False, say=_quiet))
        except UserError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=press) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (running,) = [job for job in jobs.jobs_list(head) if job.command == "sleep 300"]
    refused = [each for each in ended if each != 0]
    assert len(refused) == 2
    assert all(f"The same command runs as {running.id} since" in str(each) for each in refused)

    assert jobs.submit(head, ["sleep", "300"], shared=True, again=True, wait=False, say=_quiet) == 0
    both = [job.id for job in jobs.jobs_list(head) if job.command == "sleep 300"]
    assert len(both) == 2
    assert [jobs.job_stop(head, name, wait=True, say=_quiet) for name in both] == [True, True]
    assert [jobs.job_of(head, name).status for name in both] == ["STOPPED", "STOPPED"]
    assert not jobs.job_stop(head, both[0])


def test_a_secret_does_not_leave(head: jobs.Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.ini").write_text(f"password = {os.environ['MLFLOW_TRACKING_PASSWORD']}\n")
    before = len(jobs.jobs_list(head))
    with pytest.raises(UserError, match=r"Word 3 of the command holds the secret of RAY_AUTH_TOKEN_PATH") as caught:
        jobs.submit(head, ["env", "-i", f"TOKEN={token}", "true"], say=_quiet)
    assert token not in str(caught.value)
    with pytest.raises(UserError, match=r"The file settings\.ini holds the secret of MLFLOW_TRACKING_PASSWORD"):
        jobs.submit(head, ["true"], include=["settings.ini"], say=_quiet)
    assert len(jobs.jobs_list(head)) == before


def test_an_unknown_job_is_the_users_mistake(client: Services) -> None:
    for ask in (jobs.job_logs, jobs.job_of, jobs.job_stop):
        with pytest.raises(UserError, match="no such job"), jobs.connected() as head:
            ask(head, "agmm-none")
    with pytest.raises(UserError, match="no such job"), jobs.connected() as head:
        jobs.job_follow(head, "agmm-none", _quiet)


def test_a_wrong_token_is_the_users_mistake(client: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("0" * 48)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    with pytest.raises(UserError, match="refused the token"), jobs.connected() as head:
        jobs.jobs_list(head)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"cannot be read.*none"), jobs.connected():
        pass


def test_a_strangers_head_gets_no_token(client: Services) -> None:
    """The environment's token is for the environment's head: one that is only named has to do without."""
    with pytest.raises(UserError, match="refused the token"), jobs.connected(f"localhost:{client.ports.dashboard}"):
        pass


@pytest.fixture
def behind_tls(client: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TLSProxy, Path]]:
    """The head behind a gateway that speaks TLS, which the environment names, and the file of its authority."""
    authority = Authority(tmp_path, "authority")
    with TLSProxy(client.ports.dashboard, authority.server_certificate()) as proxy:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", proxy.url)
        yield proxy, authority.file


def test_a_log_is_followed_over_an_interruption(
    behind_tls: tuple[TLSProxy, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Through TLS; the gateway breaks all lines, and is away for a while."""
    proxy, ca = behind_tls
    go = tmp_path / "go"
    script = (
        "import pathlib, sys, time\n"
        "print('before', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.1)\n"
        "print('after')\n"
    )
    said: list[str] = []
    out: list[str] = []

    def interrupt() -> None:
        _until(lambda: _seen(capsys, out, "before\n"), "the job has not started")
        proxy.away = True
        proxy.hang_up()
        _until(lambda: any("trying again" in line for line in said), "nobody missed the line")
        go.touch()
        proxy.away = False

    meanwhile = threading.Thread(target=interrupt)
    meanwhile.start()
    with jobs.connected(ca=str(ca)) as head:
        assert jobs.submit(head, ["python", "-c", script, str(go)], shared=True, say=said.append) == 0
    meanwhile.join()
    _seen(capsys, out, "")
    log = "".join(out)
    assert (log.count("before\n"), log.count("after\n"), log.count("Running entrypoint")) == (1, 1, 1)


def _seen(capsys: pytest.CaptureFixture[str], out: list[str], text: str) -> bool:
    out.append(capsys.readouterr().out)
    return text in "".join(out)


def test_a_head_that_stays_away_is_given_up(behind_tls: tuple[TLSProxy, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, ca = behind_tls
    monkeypatch.setattr(following, "_AWAY_S", 1.0)
    with jobs.connected(ca=str(ca)) as head:
        said: list[str] = []
        assert jobs.submit(head, ["sleep", "60"], shared=True, wait=False, say=said.append) == 0
        name = json.dumps(said[0]).split()[1].rstrip(":")
        proxy.away = True
        proxy.hang_up()
        with pytest.raises(ServiceError, match=rf"has not answered.*{name} may go on"):
            following.follow(head, name, _quiet)
        proxy.away = False
        assert jobs.job_stop(head, name, wait=True, say=_quiet)


def test_the_variable_names_the_authority_too(
    behind_tls: tuple[TLSProxy, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ca = behind_tls
    with pytest.raises(UserError, match="not vouched for"), jobs.connected():
        pass
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    with jobs.connected() as head:
        assert isinstance(jobs.jobs_list(head), list)
