"""Files that are there whole or not at all, and text of files as it may be shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what shall be at `path`: it is put there at the end, or removed where that is not reached.

    The folder is made. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def shown(text: str, most: int = 200) -> str:
    """Text that someone else wrote, for a line of a terminal: at most so many characters, and none that steers it."""
    plain = (one if one.isprintable() else ascii(one)[1:-1] for one in text[:most])
    return "".join(plain) + ("..." if len(text) > most else "")
