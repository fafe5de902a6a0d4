"""What travels with a job, and what does not."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from cluster.errors import UserError
from cluster.jobs import bundle as bundles
from cluster.jobs.bundle import bundle, code_files, runtime_environment
from cluster.jobs.code import COMPILED, PACKAGES, describe, digest, package_folders
from cluster.jobs.submission import digest_of


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a recipe, a module, a repository, a secret."""
    folder = tmp_path / "project"
    for name in ("conf/mine.yaml", "lib/tool.py", "lib/__pycache__/tool.pyc", ".git/config", "lib/.env"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(folder)
    return folder


def test_recipes_are_copied_and_renamed(tmp_path: Path) -> None:
    paths = []
    for folder in ("one", "two"):
        path = tmp_path / folder / "recipe.yaml"
        path.parent.mkdir()
        path.write_text(folder)
        paths.append(str(path))
    sent = bundle(["agmm", "train", *paths, paths[0], "missing.yaml", "--set"])
    assert sent.words == ["agmm", "train", "recipe.yaml", "1-recipe.yaml", "recipe.yaml", "missing.yaml", "--set"]
    with runtime_environment(sent.files, {}) as found:
        folder = Path(found["working_dir"])
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "recipe.yaml": "one",
            "1-recipe.yaml": "two",
        }
    assert not folder.exists()


def test_nothing_to_send() -> None:
    sent = bundle(["python", "-c", "print('a b')"])
    assert sent == (["python", "-c", "print('a b')"], {})
    with runtime_environment(sent.files, {}) as found:
        assert found == {}


def test_what_is_included_keeps_its_path(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("")
    sent = bundle(["agmm", "train", "conf/mine.yaml"], [".", str(tmp_path / "helper.py")])
    assert sorted(sent.files) == ["conf/mine.yaml", "helper.py", "lib/tool.py"]
    assert sent.words[-1] == "conf/mine.yaml"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (".git", "hidden"),
        ("lib/.env", "hidden"),
        ("nothing", "no such file"),
        ("weights", r"data or weights: weights/a\.safetensors, weights/b\.PT\..*agmm data push"),
        ("cluster", "--with-code"),
    ],
)
def test_what_is_not_taken_along(project: Path, given: str, message: str) -> None:
    for name in ("weights/a.safetensors", "weights/b.PT", "cluster/errors.py"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).touch()
    with pytest.raises(UserError, match=message):
        bundle(["true"], [given])


def test_two_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tool.py").touch()
    with pytest.raises(UserError, match=r"two files named lib/tool\.py"):
        bundle(["true"], ["lib", str(tmp_path / "lib")])


def test_too_much_names_the_largest(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MOST_BYTES", 1 << 20)
    for index in range(7):
        (project / "lib" / f"{index}.txt").write_bytes(bytes((index + 1) * 100_000))
    with pytest.raises(UserError, match=r"2\.7 MiB .*allowed are 1\. The largest: lib/6\.txt \(0\.7 MiB\)") as caught:
        bundle(["true"], ["lib"])
    assert "lib/2.txt" in str(caught.value)
    assert "lib/1.txt" not in str(caught.value)


def test_the_code_is_what_runs_here() -> None:
    code = code_files(compiled=False)
    assert {name.split("/")[0] for name in code} == {*PACKAGES, f"agmm-{importlib.metadata.version('agmm')}.dist-info"}
    assert {"agmm/packed/native/api.cpp", "pipelines/recipes/cifar10_resnet19.yaml"} <= set(code)
    assert [name for name in code if name.endswith((*COMPILED, ".pyc")) or "direct_url" in name] == []
    with runtime_environment({}, code) as found:
        assert [Path(path).name for path in found["py_modules"]] == sorted({name.split("/")[0] for name in code})
        copies = {name: Path(path) for path in found["py_modules"] if (name := Path(path).name) in PACKAGES}
        assert digest(copies) == digest(package_folders()) == describe()["code"]
        (copies["cluster"] / "errors.py").write_text("")
        assert digest(copies) != describe()["code"]


def test_an_installation_tells_what_it_lacks() -> None:
    assert describe(["pydantic", "no-such-package"])["missing"] == ["no-such-package"]


def test_the_same_submission_is_one(project: Path) -> None:
    def now(*words: str, user: str = "me") -> str:
        return digest_of(bundle(["agmm", "train", *words]), user)

    first = now("conf/mine.yaml")
    assert now("conf/mine.yaml") == first
    assert now("conf/mine.yaml", "--resume") != first
    assert now("conf/mine.yaml", user="you") != first
    (project / "conf" / "mine.yaml").write_text("changed")
    assert now("conf/mine.yaml") != first
