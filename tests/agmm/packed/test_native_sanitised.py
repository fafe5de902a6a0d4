"""The tests of the compiled kernels again, with a library that checks its own memory and arithmetic."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agmm.packed import native

HERE = Path(__file__).parent
SOURCES = Path(native.__file__).parent / "native"
ROOT = HERE.parents[2]
FLAGS = ["-O1", "-g", "-std=c++17", "-pthread", "-fPIC", "-shared"]
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]


def runtime_library(name):
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture(scope="module")
def sanitised(tmp_path_factory):
    """The library, and what must be loaded before Python for it."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    preload = [runtime_library(name) for name in ("libasan.so", "libubsan.so")]
    if not all(Path(path).is_absolute() for path in preload):
        pytest.skip("g++ has no libasan or libubsan")
    built = tmp_path_factory.mktemp("sanitised") / "kernels.so"
    subprocess.run(["g++", *FLAGS, *CHECKS, *map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(built)], check=True)
    return built, ":".join(preload)


def run_tests(sanitised, *arguments):
    library, preload = sanitised
    environment = os.environ | {
        native.LIBRARY_VARIABLE: str(library),
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much to the end
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
def test_layers_touch_no_memory_but_theirs(sanitised):
    run_tests(sanitised, str(HERE / "test_native.py"), "-k", "not what_is_no_library")


@pytest.mark.slow
def test_networks_touch_no_memory_but_theirs(sanitised):
    run_tests(sanitised, str(HERE / "test_native_networks.py"))
