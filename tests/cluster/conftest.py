"""One real stack for the tests of this folder that need one: S3, MLflow and a Ray head, whose agmm is not quite this.

With TLS, and S3 and MLflow at an address of their own; tests/integration has the stack without.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import services
from cluster.environment import CONFLICTING
from cluster.jobs.code import PACKAGES, package_folders
from cluster.settings import Services, ServiceSettings


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    home = tmp_path_factory.mktemp("home")
    ports = dict.fromkeys(("s3_port", "mlflow_port", "dashboard_port", "ray_port"), 0)
    settings = ServiceSettings(home=home, **ports, num_cpus=1, host="127.0.0.2", tls=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(_other_agmm(home)))
        started = services.up(settings)
    try:
        yield started
    finally:
        services.down(home)


def _other_agmm(home: Path) -> Path:
    folder = home / "other-agmm"
    for name in PACKAGES:
        shutil.copytree(package_folders()[name], folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "pipelines" / "version.py").open("a") as file:
        file.write("\nOTHER = True\n")
    return folder


@pytest.fixture
def client(running: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """This process's environment points at the services."""
    for name in CONFLICTING:
        monkeypatch.delenv(name, raising=False)
    for name, value in services.environment(running.home).items():
        monkeypatch.setenv(name, value)
    return running
