"""C++ libraries behind ctypes: found where installing the package put them, and refused where they do not fit.

Where there was no compiler there is no library: `available()` is empty, `why_not()` says why, and a reference runs.
Each holds one set of functions several times over, for the processors that it knows; those are its paths.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# The path where none is asked for: a name of `available()`, of every library.
VARIABLE = "AGMM_KERNELS"


class CompiledLibrary:
    """One library, loaded when it is first asked for.

    Args:
        folder: of the package that it belongs to; the library's file is `_kernels` there.
        bind: gives the functions of a loaded library their types. Raises AttributeError for one that is missing.
        prefix: of the functions' names; those called `abi` and `paths` are looked for here.
        abi: what `abi` answers where the library was compiled from these sources.
        variable: of the environment, names another file: how the tests run one that checks itself.

    """

    def __init__(
        self, folder: Path, bind: Callable[[ctypes.CDLL], Any], *, prefix: str, abi: int, variable: str
    ) -> None:
        self._folder, self._bind, self._prefix = folder, bind, prefix
        self._abi, self._variable = abi, variable
        self._found: Any = None

    def available(self) -> tuple[str, ...]:
        """Paths that this machine and build offer, best first; empty where there is no library."""
        library = self._opened()
        return () if isinstance(library, str) else tuple(self._ask(library, "paths").decode().split())

    def why_not(self) -> str:
        """Why there is no library; empty where there is one."""
        library = self._opened()
        return library if isinstance(library, str) else ""

    def loaded(self) -> Any:
        """The library. Raises RuntimeError where there is none."""
        if reason := self.why_not():
            raise RuntimeError(f"There are no compiled kernels: {reason}.")
        return self._opened()

    def path(self, asked: str | None = None) -> str:
        """What is asked for, or AGMM_KERNELS says, or the best. Raises ValueError for an unknown one."""
        self.loaded()
        known = self.available()
        chosen = asked or os.environ.get(VARIABLE) or known[0]
        if chosen not in known:
            raise ValueError(f"Unknown kernels {chosen!r}. This machine has: {', '.join(known)}.")
        return chosen

    def _opened(self) -> Any:
        """The library, or why there is none."""
        if self._found is None:
            path = self._file()
            self._found = (
                self._open(path)
                if path
                else ("they were not compiled at installation: install a C++ compiler, then run `pip install` again")
            )
        return self._found

    def _file(self) -> Path | None:
        if named := os.environ.get(self._variable):
            return Path(named)
        places = (self._folder / f"_kernels{suffix}" for suffix in EXTENSION_SUFFIXES)
        return next((place for place in places if place.exists()), None)

    def _open(self, path: Path) -> Any:
        try:
            library = self._bind(ctypes.CDLL(str(path)))
        except (OSError, AttributeError) as error:
            return f"{path} cannot be loaded: {error}"
        if self._ask(library, "abi") != self._abi:
            return f"{path} was compiled from other sources than these: run `pip install` again"
        return library

    def _ask(self, library: Any, name: str) -> Any:
        return getattr(library, self._prefix + name)()
