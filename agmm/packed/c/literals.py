"""Numbers and text as C has them, so that no value and no name of a network can change what the file is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LINE = 100
# A C99 compiler need not take a longer string; cut where a whole character ends.
_LONGEST_STRING = 4000
_ESCAPED = set('"\\?')


def comment(text: str) -> str:
    """Text for a comment: what could end it, continue a line or be no ASCII is shown by its number."""
    return "".join(
        one if one.isascii() and one.isprintable() and one not in "*\\?" else f"<U+{ord(one):04X}>" for one in text
    )


def string(text: str) -> str:
    """A string literal of the text's UTF-8, in octal where it is no plain ASCII, of at most 4,000 bytes."""
    cut = text.encode(errors="replace")[:_LONGEST_STRING].decode(errors="ignore")
    characters = [chr(byte) for byte in cut.encode()]
    plain = [one if 32 <= ord(one) < 127 and one not in _ESCAPED else f"\\{ord(one):03o}" for one in characters]
    return f'"{"".join(plain)}"'


def number(value: float, what: str) -> str:
    """A float32 literal that reads back as the value rounded once. Raises ValueError for one out of range."""
    return floats(np.array([value]), what)[0]


def floats(values: NDArray[Any], what: str) -> list[str]:
    """As `number`, of many."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32).ravel()
    if not np.isfinite(rounded).all():
        raise ValueError(f"{what} has values beyond float32, in which C computes: up to {np.abs(values).max():g}.")
    return [f"{value!s}f" for value in rounded]


def float_array(name: str, values: NDArray[Any]) -> str:
    """A constant array of all values, in their order. Raises as `number`."""
    return _array("float", name, floats(values, name))


def word_array(name: str, values: NDArray[np.uint32]) -> str:
    """A constant array of all words, in their order."""
    return _array("uint32_t", name, [f"0x{word:x}" for word in values.ravel().tolist()])


def _array(kind: str, name: str, literals: list[str]) -> str:
    return "\n".join([f"static const {kind} {name}[{len(literals)}] = {{", *_lines(literals), "};"])


def _lines(literals: Iterable[str]) -> list[str]:
    lines, line = [], "   "
    for literal in literals:
        if len(line) + len(literal) > _LINE:
            lines.append(line)
            line = "   "
        line += f" {literal},"
    return [*lines, line]
