"""A JSON file that carries a checksum of its own bytes, so that no change of it at all goes unseen."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_DIGITS = 64


def sealed(tree: dict[str, Any]) -> bytes:
    """JSON of `tree` whose first entry, "checksum", is the SHA-256 of the file without these 64 digits."""
    text = json.dumps({"checksum": ""} | tree, indent=1, ensure_ascii=False) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    return text.replace('""', f'"{digest}"', 1).encode()


def is_sealed(content: bytes, checksum: object) -> bool:
    """Whether `content` is as it was written, with the checksum that was read from it."""
    if not isinstance(checksum, str) or len(checksum) != _DIGITS:
        return False
    return hashlib.sha256(content.replace(checksum.encode(), b"", 1)).hexdigest() == checksum
