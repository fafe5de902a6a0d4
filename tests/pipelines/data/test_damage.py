"""One flipped bit or a truncation, anywhere in a data set: refused before use, by name; in the cache, mended."""

import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from pipelines.data import cache
from pipelines.data.manifest import MANIFEST, ensure_verified
from pipelines.data.staging import stage
from pipelines.errors import ServiceError, UserError
from tests.pipelines.data.staging_helpers import small_chunks

pytestmark = pytest.mark.slow

NAMES = ("train.beton", "val.beton", MANIFEST)
TIMES = 100


def _damages(folder, seed):
    """Files with what they should hold, each damaged in its turn and put right again."""
    rng = random.Random(seed)
    right = {name: (folder / name).read_bytes() for name in NAMES}
    for turn in range(TIMES):
        name = NAMES[turn % len(NAMES)]
        content = bytearray(right[name])
        if rng.random() < 0.5:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        _write(folder / name, content, turn)
        yield name, right[name]
        _write(folder / name, right[name], turn)


def _write(path, content, turn):
    path.write_bytes(content)
    os.utime(path, ns=(turn, turn))  # the clock of files is coarser than this loop


def _forget_all():
    """Else what was fetched before need not be fetched from a damaged origin."""
    for folder in list(cache._held):
        cache.let_go(folder)
    shutil.rmtree(cache.cache_dir(), ignore_errors=True)


def test_in_a_folder_all_are_refused_by_name(square, tmp_path):
    folder = small_chunks(square, tmp_path / "built")
    ensure_verified(folder)
    for name, _ in _damages(folder, 1):
        with pytest.raises(UserError, match=f"built/{name}"):
            ensure_verified(folder)


def test_at_the_origin_all_are_refused_by_name(square, tmp_path):
    folder = small_chunks(square, tmp_path / "origin")
    for name, _ in _damages(folder, 2):
        with pytest.raises((UserError, ServiceError), match=f"origin/{name}"):
            stage(f"file://{folder}")
        assert not list(cache.cache_dir().glob(f"*/{MANIFEST}"))
        _forget_all()


def test_in_the_cache_all_are_mended(square, tmp_path):
    origin = small_chunks(square, tmp_path / "origin")
    folder = stage(f"file://{origin}")
    for name, right in _damages(folder, 3):
        assert stage(f"file://{origin}") == folder
        assert (folder / name).read_bytes() == right
        ensure_verified(folder)


def _stage_in_a_process(uri, fault):
    command = [sys.executable, "-m", "pipelines.cli", "data", "stage", uri]
    return subprocess.run(
        command, env={**os.environ, "AGMM_FAULTS": fault}, capture_output=True, check=False
    ).returncode


def test_killed_ten_times_at_each_point_it_ends_with_the_same_bytes(square, tmp_path):
    origin, rng = small_chunks(square, tmp_path / "origin"), random.Random(4)
    uri = f"file://{origin}"
    for _ in range(10):
        # a try that has at least as many chunks left is killed; the last ones are ended by the commit
        assert _stage_in_a_process(uri, f"data.stage.chunk=crash@{rng.randint(1, 6)}") == -signal.SIGKILL
    for _ in range(10):
        assert _stage_in_a_process(uri, "data.stage.commit=crash") == -signal.SIGKILL
    folder = stage(uri)
    assert all((folder / name).read_bytes() == (origin / name).read_bytes() for name in NAMES)
