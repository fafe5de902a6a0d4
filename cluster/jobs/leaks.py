"""No secret of this environment may travel with a job: a head shows commands and files to all its users."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.errors import UserError

_NAME = re.compile(r"(KEY|TOKEN|PASSWORD|PASSWD|SECRET)$", re.IGNORECASE)
_FILE = re.compile(r"_(PATH|FILE)$")
_PAIR = re.compile(r"^\s*([\w.-]+)\s*[=:]\s*(\S+)\s*$", re.MULTILINE)  # a line of an INI file
_PASSWORD_IN_URL = re.compile(rb"://[^/\s:@]+:[^/\s:@]+@")
_LEAST = 8  # bytes: what is shorter is in many a text by chance, and no secret
_LARGEST_FILE = 1 << 16


def known_secrets(environ: Mapping[str, str] = os.environ) -> dict[str, bytes]:
    """The secrets of an environment, by the variable that holds one or names the file that does."""
    found = {name: value.strip().encode() for name, value in environ.items() if _NAME.search(name)}
    for name, value in environ.items():
        if _FILE.search(name) or Path(value).is_file():
            found.pop(name, None)  # it says where a secret is: RAY_TLS_SERVER_KEY
            found |= {f"{name}{part}": secret.encode() for part, secret in _of_file(Path(value))}
    return {name: secret for name, secret in found.items() if len(secret) >= _LEAST}


def refuse_secrets(texts: Mapping[str, bytes], secrets: Mapping[str, bytes]) -> None:
    """Raise UserError where a text holds a secret. It says which of both by their names, and repeats neither.

    texts: what is about to be sent, by how a person calls it.
    """
    for where, text in texts.items():
        name = next((name for name, secret in secrets.items() if secret in text), "")
        if name or _PASSWORD_IN_URL.search(text):
            what = f"the secret of {name}" if name else "an address with a password in it"
            raise UserError(
                f"{where} holds {what}. Whoever may use the Ray head can read it there. Leave it out: a job has the "
                "environment of its head, so set the variable, or put the file, there."
            )


def _of_file(path: Path) -> Iterator[tuple[str, str]]:
    """The secrets in a file: its only word, a private key, or the values of names that say so."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # not ours to read: then it cannot be in what we send
        return
    if len(text.split()) == 1 or "PRIVATE KEY-----" in text:
        yield "", text
    for name, value in _PAIR.findall(text):
        if _NAME.search(name):
            yield f" ({name})", value
