"""What a process sends over TCP, as the kernel counts it."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import UserError

_SENT, _AGAIN = slice(200, 208), slice(208, 216)  # of Linux's struct tcp_info, since 4.19
_QUIET_S = 0.1


def bytes_sent_by(call: Callable[[], object]) -> int:
    """Bytes that this process's TCP sockets send for a call, by other threads too, without those sent again.

    Sockets that are opened or closed meanwhile are not counted in full. Raises UserError where the kernel does not
    count: it takes Linux 4.19.
    """
    before = _when_quiet()
    call()
    return _when_quiet() - before


def _when_quiet() -> int:
    count = _sent()
    while True:
        time.sleep(_QUIET_S)
        before, count = count, _sent()
        if count == before:
            return count


def _sent() -> int:
    total = 0
    for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else ():
        try:
            if str(entry.readlink()).startswith("socket:"):
                total += _sent_over(int(entry.name))
        except OSError:  # closed since, or no TCP
            continue
    return total


def _sent_over(descriptor: int) -> int:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _AGAIN.stop:
        raise UserError("This kernel does not count the bytes that a socket sends; Linux does since 4.19.")
    # a busy receiver has the kernel send a segment again, on loopback too
    return int.from_bytes(info[_SENT], sys.byteorder) - int.from_bytes(info[_AGAIN], sys.byteorder)
