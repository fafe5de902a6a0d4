"""The compiled decoder of a box of a JPEG file, and the resize that goes with it.

Installing the package compiles `pipelines/data/native` where there are a compiler and libjpeg-turbo's headers. Numba
calls `decode_box` and `shrink` by their addresses; nothing here is slower than that, and nothing is checked.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_INT, _REAL, _ADDRESS = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


def why_not() -> str:
    """Why it cannot be used; empty where it can."""
    return _library()[1]


def library() -> ctypes.CDLL:
    """`agmm_decode_box` and `agmm_shrink`, as pixels.h has them. Raises RuntimeError where they are not."""
    found, why = _library()
    if found is None:
        raise RuntimeError(why)
    return found


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    places = (Path(__file__).with_name(f"_pixels{suffix}") for suffix in EXTENSION_SUFFIXES)
    path = next((place for place in places if place.exists()), None)
    if path is None:
        return None, "the JPEG decoder was not compiled when agmm was installed"
    try:
        return _bound(ctypes.CDLL(str(path))), ""
    except OSError as error:
        return None, str(error)


def _bound(found: ctypes.CDLL) -> ctypes.CDLL:
    found.agmm_decode_box.argtypes = [_ADDRESS, *[_INT] * 8, _ADDRESS]
    found.agmm_decode_box.restype = ctypes.c_int
    found.agmm_shrink.argtypes = [_ADDRESS, *[_INT] * 2, *[_REAL] * 4, _INT, _ADDRESS]
    found.agmm_shrink.restype = None
    return found
