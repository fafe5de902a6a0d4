"""Nodes in network namespaces: they reach each other, at the rate that was asked for, and nothing of them stays."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from pipelines.benchmarks.namespaces import RATES_MBIT, network, remove_stale, why_not
from pipelines.errors import ServiceError, UserError

_needs_nodes = pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}")

_SERVE = "import socket; s = socket.create_server(('0.0.0.0', 5001)); print(1, flush=True); c = s.accept()[0]\n"
_TAKE = "while c.recv(1 << 20): pass\nc.sendall(b'k')"
_SEND = "import socket, sys, time\ns = socket.create_connection((sys.argv[1], 5001)); t = time.perf_counter()\n"
_GIVE = "s.sendall(bytes(int(sys.argv[2]))); s.shutdown(1); s.recv(1); print(time.perf_counter() - t)"


def _names(pid):
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"agmm-{pid}-")]


def _seconds(one, other, count):
    """Seconds in which one node sends another so many bytes, and is told that they came."""
    with subprocess.Popen(other.command(sys.executable, "-c", _SERVE + _TAKE), stdout=subprocess.PIPE) as server:
        try:
            server.stdout.readline()
            words = one.command(sys.executable, "-c", _SEND + _GIVE, other.address, str(count))
            return float(subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout)
        finally:
            server.kill()


@_needs_nodes
def test_nodes_reach_each_other_and_no_faster_than_was_asked_for():
    before = socket.if_nameindex()
    with network(3, rate_mbit=20) as nodes:
        assert socket.if_nameindex() == before, "the machine's own network was touched"
        assert len(_names(os.getpid())) == 4  # and the bridge's
        assert len({node.address for node in nodes}) == 3
        assert _seconds(nodes[0], nodes[2], 1_000_000) > 0.95 * 8 / 20
    assert not _names(os.getpid())


@_needs_nodes
def test_nothing_stays_after_an_error_within():
    with pytest.raises(ZeroDivisionError), network(1):
        _ = 1 / 0
    assert not _names(os.getpid())


_WAITS = textwrap.dedent("""
    import time
    from pipelines.benchmarks.namespaces import network
    with network(2):
        print("there", flush=True)
        time.sleep(60)
""")


def _killed(number):
    """A process that has made nodes, sent a signal; returns its id."""
    with subprocess.Popen([sys.executable, "-c", _WAITS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.readline()
        assert len(_names(process.pid)) == 3
        process.send_signal(number)
    return process.pid


@_needs_nodes
def test_nothing_stays_after_ctrl_c():
    assert not _names(_killed(signal.SIGINT))


@_needs_nodes
def test_what_a_killed_process_left_goes_and_what_others_have_stays():
    dead = _killed(signal.SIGKILL)
    assert len(_names(dead)) == 3
    foreign = f"agmm-{dead}-other"
    subprocess.run(["ip", "netns", "add", foreign], check=True)
    try:
        with network(1):
            assert _names(dead) == [foreign]
            assert remove_stale() == []
            assert len(_names(os.getpid())) == 2
    finally:
        subprocess.run(["ip", "netns", "delete", foreign], check=True)


@_needs_nodes
@pytest.mark.parametrize(("count", "rate", "match"), [(0, None, "1 to 64"), (65, 1, "1 to 64"), (2, 0, "it can have")])
def test_what_is_out_of_bounds(count, rate, match):
    with pytest.raises(UserError, match=match), network(count, rate):
        pass
    with pytest.raises(UserError, match="it can have 1 to 2000"), network(1, RATES_MBIT[1] + 1):
        pass


@_needs_nodes
def test_what_cannot_be_made_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    broken = tmp_path / "tc"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 2\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ServiceError, match=r"`tc .* ended with 2: no such thing"), network(1, 10):
        pass
    assert not _names(os.getpid())


def test_without_root_it_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if sys.platform.startswith("linux"):
        with pytest.raises(UserError, match="takes root"), network(2):
            pass
    assert remove_stale() == []
