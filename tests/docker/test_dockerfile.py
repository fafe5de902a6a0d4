"""The Dockerfile without an engine: pins, user, secrets, compilers, layers, and that it agrees with pyproject.toml."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = ("cpu", "cuda")


def _instructions(text: str) -> list[tuple[str, str]]:
    """Every instruction as (name, argument), lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in joined.splitlines()]


def _stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Each stage by name: what it starts from, and its instructions."""
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    body: list[tuple[str, str]] = []
    for name, argument in _instructions((DOCKER / "Dockerfile").read_text()):
        if name == "FROM":
            base, _, stage = re.fullmatch(r"(\S+)( AS (\S+))", argument).groups()
            body = []
            stages[stage] = (base, body)
        else:
            body.append((name, argument))
    return stages


STAGES = _stages()
EVERYTHING = _instructions((DOCKER / "Dockerfile").read_text())


def _chain(stage: str) -> list[tuple[str, str]]:
    """All instructions that make up a stage's image, from the base on."""
    base, body = STAGES[stage]
    return [*(_chain(base) if base in STAGES else []), *body]


def _arguments(name: str, instructions: list[tuple[str, str]]) -> list[str]:
    return [argument for found, argument in instructions if found == name]


def test_every_base_is_a_stage_or_a_version_to_the_patch():
    defaults = dict(argument.split("=", 1) for argument in _arguments("ARG", EVERYTHING) if "=" in argument)
    for base in {base for base, _ in STAGES.values()} - set(STAGES):
        image = defaults[base.strip("${}")]
        assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", image), image


def test_the_base_has_the_python_that_was_tested():
    wanted = PROJECT["requires-python"].split(",")[0].removeprefix(">=")
    assert f"python:{wanted}." in _arguments("ARG", EVERYTHING)[0]


@pytest.mark.parametrize("target", TARGETS)
def test_the_last_user_is_a_number_and_not_root(target):
    last = _arguments("USER", _chain(target))[-1]
    assert last == "${UID}:${GID}"
    defaults = dict(argument.split("=") for argument in _arguments("ARG", STAGES[target][1]))
    assert int(defaults["UID"]) >= 1000
    assert int(defaults["GID"]) >= 1000


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_brings_no_compiler_no_headers_and_no_pip(target):
    installed = " ".join(_arguments("RUN", _chain(target)))
    assert not re.search(r"build-essential|gcc|g\+\+|-dev\b|pip install", installed)
    assert all(copied.startswith(("--from=", "docker/check.py")) for copied in _arguments("COPY", _chain(target)))


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_has_a_health_check_an_init_and_labels(target):
    chain = _chain(target)
    assert _arguments("HEALTHCHECK", chain)[-1].endswith('CMD ["python", "-m", "cluster.health"]')
    assert _arguments("ENTRYPOINT", chain) == ['["tini", "--"]']
    labels = " ".join(_arguments("LABEL", chain))
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels


def test_what_changes_with_each_commit_comes_after_what_does_not():
    """A layer that is made anew makes all behind it anew: the revision's label behind the copies, ours behind torch."""
    for target in TARGETS:
        names = [f"{name} {argument}" for name, argument in STAGES[target][1]]
        order = [next(i for i, line in enumerate(names) if part in line) for part in ("-packages", "/own/", "REVISION")]
        assert order == sorted(order)
        assert not any("REVISION" in argument for _, argument in _chain(STAGES[target][0]))


def test_no_secret_is_an_argument_or_a_setting():
    settings = " ".join([*_arguments("ARG", EVERYTHING), *_arguments("ENV", EVERYTHING)])
    assert not re.search(r"(?i)password|secret|token|_key|credential|://[^/\s]*@", settings)


def test_pip_takes_its_index_from_outside():
    lines = _arguments("RUN", EVERYTHING)
    online = [line for line in lines if re.search(r"pip \S*.*(install|wheel)", line) and "--no-index" not in line]
    assert len(online) == 6
    assert all("--mount=type=secret,id=pip,target=/etc/pip.conf" in line for line in online)
    assert not any("index-url http" in line for line in lines)


def test_pip_is_held_to_the_constraints():
    assert any("PIP_CONSTRAINT=/src/constraints.txt" in setting for setting in _arguments("ENV", STAGES["tools"][1]))
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {re.split(r"[\[>=<]", wanted)[0].lower() for wanted in _wanted()} <= pinned | {"ffcv"}
    assert {"torch", "torchvision", "ffcv", "setuptools"} <= pinned


def _wanted() -> list[str]:
    extras = next(argument for argument in _arguments("ARG", EVERYTHING) if argument.startswith("EXTRAS="))
    spec = importlib.util.spec_from_file_location("docker_requirements", DOCKER / "requirements.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wanted: list[str] = module.requirements((ROOT / "pyproject.toml").read_text(), extras[8:-1].split())
    return wanted


def test_the_requirements_are_those_of_the_project():
    wanted = _wanted()
    assert set(PROJECT["dependencies"]) <= set(wanted)
    assert set(PROJECT["optional-dependencies"]["service"]) <= set(wanted)
    assert set(PROJECT["optional-dependencies"]["postgres"]) <= set(wanted)
    assert not any(name.startswith("opencv-python>") for name in wanted)


def test_ffcv_gets_what_the_makefile_gives_it():
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("FFCV :="))
    named = set(line.removeprefix("FFCV := ").split()[1:])
    assert named <= set(_wanted())


def test_the_version_is_the_projects():
    for target in TARGETS:
        assert f"VERSION={PROJECT['version']}" in _arguments("ARG", STAGES[target][1])


def test_both_targets_are_made_alike():
    cpu, cuda = (
        [line for line in STAGES[target][1] if "NVIDIA" not in line[1] and line[0] != "LABEL"] for target in TARGETS
    )
    assert [(name, argument.replace("cpu", "cuda")) for name, argument in cpu] == cuda
    assert STAGES["cpu-packages"][1][-1] == STAGES["cuda-packages"][1][-1]


def _sent() -> set[str]:
    """The paths at the root, or below docker/, that the ignore file lets a build see."""
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return {rule[1:] for rule in rules if rule.startswith("!")}


def test_the_context_is_what_is_copied_and_no_more():
    sources = set()
    for argument in _arguments("COPY", EVERYTHING):
        if not argument.startswith("--from="):
            sources |= set(argument.split()[:-1])
    assert sources == _sent()
    assert all((ROOT / source).exists() for source in sources)
    assert not any(fnmatch.fnmatch(source, "*secret*") for source in sources)
