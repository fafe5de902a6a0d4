"""The image's health check, against servers that answer, refuse, are silent or are not there."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster import health


@contextmanager
def _server(status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/well" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port that is taken, and refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_one_that_is_well_has_no_complaint():
    with _server(200) as port:
        checks = {"a": health.Check(port, "/well")}
        assert health.complaints(["a"], checks) == health.complaints([], checks) == []


@pytest.mark.parametrize(("status", "path"), [(503, "/well"), (200, "/elsewhere")])
def test_another_answer_is_a_complaint_with_or_without_a_name(status, path):
    with _server(status) as port:
        checks = {"a": health.Check(port, path)}
        expected = [f"a: status {503 if status == 503 else 404}"]
        assert health.complaints(["a"], checks) == health.complaints([], checks) == expected


def test_where_nothing_listens_only_a_named_one_is_missed(nobody):
    checks = {"a": health.Check(nobody, "/well")}
    assert health.complaints([], checks) == []
    assert health.complaints(["a"], checks) == ["a: nothing listens"]


def test_one_that_says_nothing_is_ill():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert health.why_ill(health.Check(silent.getsockname()[1], "/well"), timeout=0.2) == "timed out"


def test_the_exit_code_and_what_is_known(capsys, monkeypatch, nobody):
    monkeypatch.setattr(health, "CHECKS", {"a": health.Check(nobody, "/")})
    assert health.main([]) == 0
    assert health.main(["b"]) == 2
    assert "Unknown: b. Known: a." in capsys.readouterr().err
