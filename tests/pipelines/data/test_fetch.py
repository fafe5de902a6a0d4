import gzip
import hashlib
import io
import shutil
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import pytest

from pipelines.data import fetch as module
from pipelines.data.fetch import KNOWN, Known, Original, fetch, is_original
from pipelines.errors import ServiceError, UserError

CONTENT = b"four idx files " * 1000
PACKED = gzip.compress(CONTENT, mtime=0)


def known(md5: str | None = None) -> Known:
    digest = md5 or hashlib.md5(PACKED).hexdigest()
    return Known("a small one", "http://example.invalid/", (Original("a.gz", digest),), 1, classes=("x", "y"))


class Response(io.BytesIO):
    def __init__(self, content: bytes, announced: int | None = None) -> None:
        super().__init__(content)
        self.headers = Message()
        self.headers["Content-Length"] = str(announced or len(content))


def serve(monkeypatch: pytest.MonkeyPatch, answer: Response | Exception, entry: Known | None = None) -> None:
    def urlopen(url: str, timeout: float) -> Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setitem(KNOWN, "small", entry or known())
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_download_then_already_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Response(PACKED))
    said: list[str] = []
    folder = fetch("small", tmp_path / "sources", said.append)
    assert (folder / "a.gz").read_bytes() == PACKED
    assert (folder / "classes.txt").read_text() == "x\ny\n"
    assert fetch("small", tmp_path / "sources", said.append) == folder
    assert "is there already" in said[-1]
    (folder / "a.gz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"damaged. Remove .*small"):
        fetch("small", tmp_path / "sources", said.append)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (urllib.error.URLError("no network"), r"no network.*proxy.*a\.gz.*by hand"),
        (TimeoutError("timed out"), "timed out"),
        (Response(PACKED[:20], announced=len(PACKED)), "ended after 20 of"),
        (Response(b"<html>"), "wrong checksum"),
    ],
)
def test_a_failed_download_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Response | Exception, says: str
) -> None:
    serve(monkeypatch, answer)
    with pytest.raises(ServiceError, match=says):
        fetch("small", tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown data set 'mnits'\. Known: fashion-mnist, cifar10, cifar100"):
        fetch("mnits", tmp_path, lambda _: None)


def test_a_recompressed_copy_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(CONTENT, 1, mtime=7))
    assert not is_original(tmp_path / "a.gz", Original("a.gz", "0" * 32))
    assert is_original(tmp_path / "a.gz", Original("a.gz", "0" * 32, hashlib.sha256(CONTENT).hexdigest()))
    (tmp_path / "a.gz").write_bytes(PACKED[:-9])
    assert not is_original(tmp_path / "a.gz", Original("a.gz", "0" * 32, hashlib.sha256(CONTENT).hexdigest()))


def test_installed_debian_package_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "usr").mkdir()
    (tmp_path / "usr" / "a.gz").write_bytes(PACKED)
    entry = Known("small", "http://example.invalid/", known().originals, 1, debian_package="dataset-small")
    serve(monkeypatch, OSError("not to be asked"), entry)
    monkeypatch.setattr(module, "_DEBIAN_FOLDER", (tmp_path / "usr").relative_to("/"))
    said: list[str] = []
    assert (fetch("small", tmp_path / "sources", said.append) / "a.gz").read_bytes() == PACKED
    assert "installed package dataset-small" in said[0]


def test_without_debian_the_url_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Known("small", "http://example.invalid/", known().originals, 1, debian_package="dataset-small")
    serve(monkeypatch, Response(PACKED), entry)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(module, "_DEBIAN_FOLDER", Path("nowhere"))
    assert fetch("small", tmp_path, lambda _: None).name == "small"
