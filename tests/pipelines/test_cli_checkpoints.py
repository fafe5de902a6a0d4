"""`agmm checkpoints list` and `verify` on real checkpoints, in a folder."""

import json
import os
import subprocess
import sys

import pytest
import torch

from pipelines import cli
from pipelines.checkpoints import checkpoint as checkpoints
from pipelines.checkpoints.attempts import claim
from pipelines.checkpoints.checkpoint import Checkpoint, Position
from pipelines.storage import open_store

RUN = "0123456789abcdef0123456789abcdef"
NAMES = [f"attempt-0001-step-{step:09d}" for step in (10, 20)]


def _run(capsys, *words):
    """Exit code, stdout and stderr of a command in this process."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["checkpoints", *map(str, words)])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return ended.value.code, shown.out, shown.err


def _rows(capsys, *words):
    code, out, _ = _run(capsys, *words, "--json")
    return code, json.loads(out)["checkpoints"]


@pytest.fixture
def folder(tmp_path):
    """A run's folder below the default store with the checkpoints NAMES."""
    path = tmp_path / "home" / "checkpoints" / RUN
    attempt = claim(open_store(str(path)), "a driver")
    tensors = {"weight": torch.arange(3000.0)}
    for step in (10, 20):
        position = Position(epoch=step // 8, offset=step % 8, step=step)
        checkpoints.save(attempt, Checkpoint(position, tensors, tensors, tensors, config={}))
    return path


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_addresses_of_a_run_of_runs_of_a_checkpoint_and_an_id(folder, capsys):
    expected = [
        {"attempt": 1, "step": 10, "epoch": 1, "state": "committed"},
        {"attempt": 1, "step": 20, "epoch": 2, "state": "committed"},
    ]
    for uri, prefix in ((folder, ""), (f"{folder}/", ""), (RUN, ""), (folder.parent, f"{RUN}/")):
        code, rows = _rows(capsys, "list", uri)
        assert code == 0
        sizes = [row.pop("bytes") for row in rows]
        assert sizes == [sum(file.stat().st_size for file in (folder / name).iterdir()) for name in NAMES]
        assert rows == [{"name": prefix + name} | values for name, values in zip(NAMES, expected, strict=True)]
    code, (only,) = _rows(capsys, "list", folder / NAMES[1])
    assert (code, only["name"], only["step"]) == (0, NAMES[1], 20)
    assert _rows(capsys, "verify", folder / NAMES[1])[1][0]["state"] == "whole"


def test_the_table_and_verify_for_people(folder, capsys):
    code, out, _ = _run(capsys, "list", folder)
    assert code == 0
    assert out.splitlines()[0].split() == ["name", "attempt", "step", "epoch", "MB", "state"]
    assert out.splitlines()[1].split() == [NAMES[0], "1", "10", "1", "0.0368", "committed"]
    code, out, _ = _run(capsys, "verify", folder)
    assert (code, out.splitlines()) == (0, [f"{name}: whole" for name in NAMES])


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "signs.safetensors", "state.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(folder, capsys, file, damage):
    path = folder / NAMES[0] / file
    if damage == "flip":
        _flip(path)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    assert _run(capsys, "list", folder)[0] == 0
    code, out, _ = _run(capsys, "verify", folder)
    assert code == 1
    first, second = out.splitlines()
    assert first.startswith(f"{NAMES[0]}: damaged")
    assert f"{NAMES[0]}/{file}" in first
    assert second == f"{NAMES[1]}: whole"


def test_all_damaged_files_are_named(folder, capsys):
    for part in ("model", "signs"):
        _flip(folder / NAMES[0] / f"{part}.safetensors")
    code, (first, _) = _rows(capsys, "verify", folder)
    assert (code, first["state"]) == (1, "damaged")
    assert [f"{part}.safetensors" in text for part, text in zip(("model", "signs"), first["problems"], strict=True)]


def test_an_unfinished_upload_is_no_damage(folder, capsys):
    (folder / NAMES[1] / "COMMITTED").unlink()
    assert [row["state"] for row in _rows(capsys, "list", folder)[1]] == ["committed", "unfinished"]
    code, rows = _rows(capsys, "verify", folder)
    assert (code, [row["state"] for row in rows]) == (0, ["whole", "unfinished"])
    code, out, err = _run(capsys, "verify", folder / NAMES[1])
    assert (code, out) == (2, "")
    assert f"{NAMES[1]} (unfinished)" in err


def test_a_checkpoint_of_format_1_is_said_to_be_of_another(folder, capsys):
    old = folder / "step-000000005"
    (folder / NAMES[0]).rename(old)
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    code, rows = _rows(capsys, "list", folder)
    assert (code, rows[0]["name"], rows[0]["attempt"], rows[0]["step"]) == (0, "step-000000005", None, 5)
    assert [row["state"] for row in rows] == ["of another format", "committed"]
    code, out, _ = _run(capsys, "verify", folder)
    assert (code, out.splitlines()) == (0, ["step-000000005: of another format", f"{NAMES[1]}: whole"])
    code, _, err = _run(capsys, "verify", old)
    assert code == 2
    assert "step-000000005 (of another format)" in err


def test_an_address_without_checkpoints(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert _run(capsys, "list", tmp_path / "empty") == (0, f"no checkpoint at {tmp_path / 'empty'}\n", "")
    code, _, err = _run(capsys, "verify", tmp_path / "empty")
    assert code == 2
    assert "There is: nothing" in err


@pytest.mark.parametrize("command", ["list", "verify"])
@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("missing", "missing does not exist. Give a run's address"),
        ("f" * 32, "does not exist"),
        ("{folder}/attempt-0001-step-000000099", "There is no checkpoint attempt-0001-step-000000099 at"),
        ("{folder}/claims/0001", "claims/0001 is a file"),
        ("ftp://host/run", "the scheme must be s3:// or a folder's path"),
        ("s3://", "names no bucket"),
    ],
)
def test_a_wrong_address_is_a_users_mistake(folder, capsys, command, uri, message):
    code, out, err = _run(capsys, command, uri.format(folder=folder))
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(folder, capsys):
    folder.chmod(0)
    try:
        code, _, err = _run(capsys, "list", folder)
    finally:
        folder.chmod(0o700)
    assert code == 2
    assert "may not be read" in err


def test_listing_needs_no_torch(folder):
    code = (
        "import sys, pipelines.cli as c\n"
        "try: c.main(sys.argv[1:])\n"
        "except SystemExit as ended: print(ended.code, *sorted(sys.modules))"
    )
    words = [sys.executable, "-c", code, "checkpoints", "list", str(folder)]
    *shown, last = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(shown) == 3
    ended, *loaded = last.split()
    assert ended == "0"
    assert not {"torch", "ray", "mlflow", "boto3", "numpy"} & set(loaded)
