"""The tests of the compiled passes again, with a library that checks its own memory and arithmetic."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agmm.kernels import native
from agmm.packed import native as packed
from tests.agmm.packed.test_native_sanitised import CHECKS, FLAGS, runtime_library

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SOURCES = [
    *(Path(native.__file__).parent / "native").glob("*.cpp"),
    Path(packed.__file__).parent / "native" / "team.cpp",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of a Python that takes the library which checks itself."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    preload = [runtime_library(name) for name in ("libasan.so", "libubsan.so")]
    if not all(Path(path).is_absolute() for path in preload):
        pytest.skip("g++ has no libasan or libubsan")
    built = tmp_path_factory.mktemp("sanitised") / "kernels.so"
    subprocess.run(
        ["g++", *FLAGS, *CHECKS, "-ffp-contract=off", *map(str, sorted(SOURCES)), "-o", str(built)], check=True
    )
    return os.environ | {
        native.LIBRARY_VARIABLE: str(built),
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much to the end
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.slow
@pytest.mark.parametrize("tests", ["test_random.py", "test_block_end.py", "test_events.py"])
def test_the_passes_touch_no_memory_but_theirs(environment, tests):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / tests)]
    chosen = "every_path" if tests == "test_random.py" else "not compiled_code and not operators"
    done = subprocess.run([*command, "-k", chosen], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
