"""AEDAT files as the two published data sets hold them: DVS-Gesture's 3.1 and CIFAR10-DVS's 2.0, from a DVS128.

Written here because no library fits: tonic's readers check nothing, take a packet of another type for polarity events
and read CIFAR10-DVS only after its conversion to AEDAT 4; spikingjelly's loop over events in Python.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.data.events import BrokenEvents, Events

DVS128 = (128, 128)

_END = b"#!END-HEADER"
_POLARITY = 1
# "eventTSOverflow": the half of the time that does not fit into an event's 31 bits.
_OVERFLOW_BITS = 31

_PACKET = np.dtype(
    [
        *(("type", "<u2"), ("source", "<u2"), ("size", "<u4"), ("time_at", "<u4")),
        *(("overflow", "<u4"), ("capacity", "<u4"), ("number", "<u4"), ("valid", "<u4")),
    ]
)
_EVENT_3 = np.dtype([("data", "<u4"), ("time", "<u4")])
_EVENT_2 = np.dtype([("address", ">u4"), ("time", ">u4")])

# jAER sets this bit for what is no pixel: a sync pulse.
_SPECIAL = 0x8000


def read_aedat3(path: Path) -> Events:
    """The valid polarity events of an AEDAT 3.1 file of a DVS128, in file order.

    Layout: DVS-Gesture's README; https://docs.inivation.com, "AEDAT 3.1". Packets of other types are passed over.
    Raises BrokenEvents, with the file's name, when it is not such a file or is cut short; OSError.
    """
    content = path.read_bytes()
    at = _header(path, content, b"#!AER-DAT3.")
    parts, overflows = [], []
    while at < len(content):
        packet, start = _packet(path, content, at)
        at = start + int(packet["capacity"]) * int(packet["size"])
        if packet["type"] == _POLARITY:
            parts.append(np.frombuffer(content, _EVENT_3, int(packet["number"]), start))
            overflows.append(int(packet["overflow"]))
    raw = np.concatenate(parts) if parts else np.zeros(0, _EVENT_3)
    later = np.repeat(np.array(overflows, np.int64) << _OVERFLOW_BITS, [len(part) for part in parts])
    valid = (raw["data"] & 1).astype(bool)
    data, times = raw["data"][valid], (raw["time"].astype(np.int64) + later)[valid]
    x, y = (data >> 17 & 0x7FFF).astype(np.int16), (data >> 2 & 0x7FFF).astype(np.int16)
    return Events(times, x, y, (data >> 1 & 1).astype(bool), DVS128)


def _packet(path: Path, content: bytes, at: int) -> tuple[np.void, int]:
    """The packet header at an offset and where its events start."""
    start = at + _PACKET.itemsize
    if start > len(content):
        raise BrokenEvents(f"{path.name} is cut short: {len(content) - at} bytes at the end are no packet header")
    packet = np.frombuffer(content, _PACKET, 1, at)[0]
    if packet["number"] > packet["capacity"] or (packet["type"] == _POLARITY and packet["size"] != _EVENT_3.itemsize):
        raise BrokenEvents(f"{path.name} is damaged: the packet header at byte {at} contradicts itself")
    end = start + int(packet["capacity"]) * int(packet["size"])
    if end > len(content):
        raise BrokenEvents(f"{path.name} is cut short: a packet ends at byte {end}, the file at {len(content)}")
    return packet, start


def read_aedat2(path: Path) -> Events:
    """The events of an AEDAT 2.0 file of a DVS128 (jAER), in file order, upright as CIFAR-10's images are.

    An address is polarity (bit 0; 1 is OFF), then bits 1-7 and 8-14. CIFAR10-DVS was recorded with the camera turned by
    90 degrees: its row is 127 less the first of them and its column 127 less the second, as spikingjelly has it. Events
    with bit 15 are sync pulses and left out.

    Raises BrokenEvents, with the file's name, when it is not such a file or is cut short; OSError.
    """
    content = path.read_bytes()
    at = _header(path, content, b"#!AER-DAT2.")
    if (len(content) - at) % _EVENT_2.itemsize:
        raise BrokenEvents(f"{path.name} is cut short: {len(content) - at} bytes are no whole number of events")
    raw = np.frombuffer(content, _EVENT_2, offset=at)
    raw = raw[raw["address"] & _SPECIAL == 0]
    address = raw["address"].astype(np.uint32)
    if len(address) and int(address.max()) >= _SPECIAL:
        raise BrokenEvents(f"{path.name} has address {int(address.max()):#x}; a DVS128 has 15 bits")
    x, y = 127 - (address >> 8 & 0x7F).astype(np.int16), 127 - (address >> 1 & 0x7F).astype(np.int16)
    return Events(raw["time"].astype(np.int64), x, y, address & 1 == 0, DVS128)


def _header(path: Path, content: bytes, version: bytes) -> int:
    """Where the events start, after the lines that begin with '#'."""
    # Programs that cut recordings write comments without the version.
    if not content.startswith(b"#") or (content.startswith(b"#!AER-DAT") and not content.startswith(version)):
        wanted, came = version[len(b"#!AER-DAT") :].decode(), content[:12].decode("latin-1")
        raise BrokenEvents(f"{path.name} is no AEDAT {wanted}x file: it starts with {came!r}")
    at = 0
    while content[at : at + 1] == b"#":
        line_end = content.find(b"\n", at)
        if line_end < 0:
            raise BrokenEvents(f"{path.name} is cut short: its header has no end")
        line, at = content[at:line_end], line_end + 1
        if line.startswith(_END):
            break
    return at
