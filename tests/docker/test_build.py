"""The cpu image, built and run for real without an engine: buildah, on a base made by debootstrap. Root, and long."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MISSING = [program for program in ("buildah", "debootstrap") if shutil.which(program) is None]
BASE = "localhost/agmm-test-base:bookworm"
IMAGE = "localhost/agmm-test:cpu"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a base image and to mount layers"),
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install buildah debootstrap: no {', '.join(MISSING)} here"),
]
Buildah = Callable[..., str]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Runs buildah with a storage of its own, which goes at the end, and returns its output."""
    folder = tmp_path_factory.mktemp("images")
    storage = ["--root", str(folder / "graph"), "--runroot", str(folder / "run")]

    def run(*words: str) -> str:
        done = subprocess.run(["buildah", *storage, *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, f"buildah {' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")


def _make_base(buildah: Buildah) -> None:
    """Debian with its own Python 3.11, where python:3.11-slim-bookworm has one that was compiled for it."""
    container = buildah("from", "scratch")
    mounted = buildah("mount", container)
    packages = "ca-certificates,python3,python3-dev,python3-venv"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", mounted],
        check=True, capture_output=True,
    )  # fmt: skip
    updates = [("debian", "bookworm"), ("debian", "bookworm-updates"), ("debian-security", "bookworm-security")]
    lines = "".join(f"deb http://deb.debian.org/{archive} {suite} main\n" for archive, suite in updates)
    (Path(mounted) / "etc/apt/sources.list").write_text(lines)
    buildah("umount", container)
    buildah("config", "--env", PATH, container)
    buildah("commit", "--rm", container, BASE)


def _pip(folder: Path) -> list[str]:
    """This machine's settings for pip, as secrets of the build, and mounts of the local folders that they name."""
    listed = subprocess.run(["python3", "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    pairs = re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed.stdout, flags=re.M)
    kept = {name: value.replace("\\n", " ") for name, value in pairs if name != "constraint"}
    options = [f"--secret=id=pip,src={folder / 'pip.conf'}"]
    if "cert" in kept:
        shutil.copy(kept["cert"], folder / "ca.pem")
        kept["cert"] = "/run/secrets/ca"
        options += [f"--secret=id=ca,src={folder / 'ca.pem'}"]
    (folder / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{name} = {value}" for name, value in kept.items())]) + "\n"
    )
    links = [value for name, value in kept.items() if name in ("find-links", "index-url", "extra-index-url")]
    named = re.findall(r"(?:^|\s)(file://)?(/\S+)", " ".join(links))
    # A folder with an index links to files beside it.
    folders = {Path(path).parent if scheme else Path(path) for scheme, path in named}
    return [*options, *(f"--volume={path}:{path}:ro" for path in sorted(folders) if path.is_dir())]


@pytest.fixture(scope="module")
def container(buildah: Buildah, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A container of the built image."""
    _make_base(buildah)
    pip = _pip(tmp_path_factory.mktemp("pip"))
    cpu_wheels = [] if os.environ.get("AGMM_TEST_TORCH_INDEX") is None else [os.environ["AGMM_TEST_TORCH_INDEX"]]
    options = {
        "isolation": "chroot", "network": "host", "format": "docker", "target": "cpu", "tag": IMAGE,
        "file": "docker/Dockerfile", "ignorefile": "docker/Dockerfile.dockerignore",
    }  # fmt: skip
    arguments = [f"BASE={BASE}", *(f"TORCH_INDEX={index}" for index in cpu_wheels)]
    words = [f"--{name}={value}" for name, value in options.items()]
    buildah("bud", *words, *(f"--build-arg={argument}" for argument in arguments), *pip, ".")
    return buildah("from", IMAGE)


@pytest.fixture
def inside(buildah: Buildah, container: str) -> Buildah:
    """Runs a command in the image, as its user."""
    return lambda *words: buildah("run", "--isolation", "chroot", container, "--", *words)


def test_the_user_is_not_root_and_finds_the_program(inside: Buildah) -> None:
    assert inside("id", "-u") == "1000"
    assert "Train, track and ship" in inside("agmm", "--help")
    assert "imagenette_resnet18" in inside("agmm", "recipes", "list")


def test_every_part_loads(inside: Buildah) -> None:
    inside("python", "/opt/agmm/check.py")


def test_its_health_check_passes(buildah: Buildah, inside: Buildah, container: str) -> None:
    check = json.loads(buildah("inspect", "--type", "image", IMAGE))["Docker"]["config"]["Healthcheck"]["Test"]
    assert check[0] == "CMD"
    inside(*check[1:])


def test_nothing_is_setuid_world_writable_or_left_behind(buildah: Buildah, container: str) -> None:
    find = ("run", "--isolation", "chroot", "--user", "root", container, "--", "find")
    assert buildah(*find, "/", "-xdev", "-perm", "/6000", "-type", "f") == ""
    assert buildah(*find, "/", "-xdev", "-type", "f", "-perm", "-0002") == ""
    assert buildah(*find, "/", "-xdev", "-type", "d", "-perm", "-0002", "!", "-perm", "-1000") == ""
    assert buildah(*find, "/opt/agmm", "!", "-user", "root") == ""
    assert buildah(*find, "/", "-xdev", "-name", "pip.conf", "-size", "+0") == ""


def test_its_history_names_no_index(buildah: Buildah) -> None:
    text = buildah("inspect", "--type", "image", IMAGE)
    assert not re.search(r"pip\.conf|PIP_|index-url", text)


def test_it_trains(
    buildah: Buildah, container: str, tiny_data: Path, tiny_tree: dict[str, Any], tmp_path: Path
) -> None:
    """Two workers of Ray, FFCV's loader, compiled passes, checkpoints, MLflow and the registry, as the image's user."""
    shutil.copytree(tiny_data, tmp_path / "in" / "tiny")
    recipe = {
        "name": "tiny",
        "model": tiny_tree["model"],
        "data": {**tiny_tree["data"], "uri": "/in/tiny", "loader": "ffcv"},
        "optim": {"lr": 0.1, "epochs": 2},
        "run": {"workers": 2, "kernels": "auto"},
        "tracking": {"register_as": "tiny"},
    }
    (tmp_path / "in" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    subprocess.run(["chmod", "-R", "a+rX", tmp_path / "in"], check=True)
    command = ["agmm", "train", "/in/recipe.yaml", "--json"]
    said = buildah("run", "--isolation", "chroot", "-v", f"{tmp_path / 'in'}:/in:ro", container, "--", *command)
    result = json.loads(said.splitlines()[-1])
    assert result["count"] == 21
    assert result["images_per_second"] > 0
