"""The C file as a function of this process: what it answers before anybody has it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agmm.packed.c.source import CSource

# What any user of the file may ask of it.
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


class Compiled:
    """A C file's function, compiled beside it and loaded.

    Args:
        source: the file.
        compiler: the program that compiles it, see `find_compiler`.

    Raises ValueError for a file that the compiler does not take as it is, without a warning.
    """

    def __init__(self, source: CSource, compiler: str) -> None:
        self.compiler, self._bytes = Path(compiler).name, source.input_bytes
        library = source.path.with_suffix(".so")
        # for this very processor it is several times as fast, and the same sums in the same order
        flags = ("-O3", "-march=native") if _takes(compiler, "-march=native") else ("-O3",)
        command = [compiler, *STRICT, *flags, "-shared", "-fPIC", str(source.path), "-o", str(library), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or done.stderr:
            raise ValueError(f"{self.compiler} does not compile the C as it is: {done.stderr[:2000]}")
        self._function = getattr(ctypes.CDLL(str(library)), source.function)
        self._function.argtypes, self._function.restype = [ctypes.c_void_p], ctypes.c_int

    def __call__(self, inputs: NDArray[np.uint8]) -> NDArray[np.int64]:
        """The classes `[B]` of images `[B, H, W, C]` or frames `[B, T, C, H, W]`."""
        rows = np.ascontiguousarray(inputs).reshape(len(inputs), self._bytes)
        return np.array([self._function(row.ctypes.data) for row in rows], np.int64)


def find_compiler() -> str | None:
    """The system's C compiler: CC of the environment, or cc; None where there is none."""
    return shutil.which(os.environ.get("CC") or "cc")


def _takes(compiler: str, flag: str) -> bool:
    command = [compiler, flag, "-x", "c", "-fsyntax-only", "-"]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False).returncode == 0
