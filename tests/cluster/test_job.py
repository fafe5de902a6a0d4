"""What submitting does without a head: addresses, recipes, errors."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import job
from cluster.errors import ServiceError, UserError
from cluster.processes import free_ports


@pytest.fixture(autouse=True)
def no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


def test_no_command() -> None:
    with pytest.raises(UserError, match="No command"):
        job.submit([])


def test_no_address() -> None:
    with pytest.raises(UserError, match=r"agmm up.*--address"):
        job.submit(["true"])


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "file:///etc/passwd"])
def test_an_address_of_another_kind(address: str) -> None:
    with pytest.raises(UserError, match="http://"):
        job.submit(["true"], address=address)


@pytest.mark.parametrize("name", ["", "..", "../version", "/etc", "a/b", "a%2fb", "a?b", "a b", "a\n", "a" * 200])
def test_a_name_that_leads_elsewhere(name: str) -> None:
    for ask in (job.job_logs, job.job_stop):
        with pytest.raises(UserError, match="no id of a job"):
            ask(name, "http://127.0.0.1:9")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The given address counts, not the environment's."""
    (port,) = free_ports(1)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere.invalid:8265")
    with pytest.raises(ServiceError, match=f"No Ray head answers at http://127.0.0.1:{port}.*agmm up"):
        job.submit(["true"], address=f"127.0.0.1:{port}")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://elsewhere.invalid:8265"


def test_somebody_else_answers() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # bound but not listening: refused, and nobody else can take it meanwhile
        with pytest.raises(ServiceError, match="No Ray head"):
            job.jobs_list(f"http://127.0.0.1:{other.getsockname()[1]}")


def test_recipes_are_copied_and_renamed(tmp_path: Path) -> None:
    paths = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "recipe.yaml"
        path.parent.mkdir()
        path.write_text(folder)
        paths.append(str(path))
    with job._staged(["agmm", "train", *paths, paths[0], "missing.yaml", "--set"]) as (words, folder):
        assert folder is not None
        assert words == ["agmm", "train", "recipe.yaml", "1-recipe.yaml", "recipe.yaml", "missing.yaml", "--set"]
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "recipe.yaml": "one",
            "1-recipe.yaml": "two",
        }
    assert not folder.exists()


def test_no_recipe_no_folder() -> None:
    with job._staged(["python", "-c", "print('a b')"]) as (words, folder):
        assert (words, folder) == (["python", "-c", "print('a b')"], None)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 130)],
)
def test_exit_codes(status: str, code: int | None, expected: int) -> None:
    from ray.job_submission import JobStatus

    details = SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="why")
    client = SimpleNamespace(get_job_info=lambda name: details)
    assert job._exit_code(client, "agmm-1", lambda _: None) == expected  # type: ignore[arg-type]


def test_an_interrupt_leaves_the_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(client: object, name: str) -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "_print_log", interrupted)
    said: list[str] = []
    assert job._watch(SimpleNamespace(), "agmm-1", said.append) == 130  # type: ignore[arg-type]
    assert "agmm jobs logs agmm-1" in said[0]
    assert "agmm jobs stop agmm-1" in said[0]


def test_importing_is_cheap() -> None:
    """The command line imports these modules to print its help."""
    script = (
        "import sys, cluster.job, cluster.services\n"
        "print([name for name in ('ray', 'boto3', 'mlflow', 'torch', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
