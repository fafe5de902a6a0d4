"""DVS-Gesture and CIFAR10-DVS from small files in the published binary layouts."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli
from pipelines.data import loaders
from pipelines.data.aedat import read_aedat2, read_aedat3
from pipelines.data.beton import BetonReader
from pipelines.data.build import build
from pipelines.data.events import BrokenEvents, Events, FrameRule, to_frames
from pipelines.data.manifest import load_manifest, verify
from pipelines.data.packed_files import CIFAR10_CLASSES
from pipelines.data.sources import open_source
from pipelines.errors import UserError

HEADER_3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-01-01\r\n#!END-HEADER\r\n"
HEADER_2 = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"

Row = tuple[int, int, int, int]


def packet(rows: list[Row], *, kind: int = 1, overflow: int = 0, valid: int = 1) -> bytes:
    """A packet of AEDAT 3.1 of rows (t, x, y, on)."""
    head = struct.pack("<HHIIIIII", kind, 1, 8, 4, overflow, len(rows), len(rows), len(rows) * valid)
    return head + b"".join(struct.pack("<II", x << 17 | y << 2 | on << 1 | valid, t) for t, x, y, on in rows)


def aedat2(rows: list[Row]) -> bytes:
    """CIFAR10-DVS's turned camera: bits 8-14 are 127 - x, bits 1-7 are 127 - y, bit 0 is 1 for OFF."""
    return HEADER_2 + b"".join(struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | 1 - on, t) for t, x, y, on in rows)


def random_rows(seed: int, count: int, start: int = 0) -> list[Row]:
    """Events a microsecond apart."""
    draws = np.random.default_rng(seed).integers(0, (128, 128, 2), (count, 3))
    return [(start + at, int(x), int(y), int(on)) for at, (x, y, on) in enumerate(draws)]


def make_gesture(root: Path, trials: dict[str, list[str]], rows_each: int = 3) -> Path:
    """A folder like DvsGesture; every recording has `rows_each` gestures of 100 events, 1,000 microseconds apart."""
    root.mkdir(parents=True)
    for listed, names in trials.items():
        (root / listed).write_text("".join(f"{name}.aedat\n" for name in names))
        for name in names:
            parts = [packet(random_rows(number, 100, 1000 * number)) for number in range(rows_each)]
            (root / f"{name}.aedat").write_bytes(HEADER_3 + b"".join(parts))
            lines = [f"{number % 11 + 1},{1000 * number},{1000 * number + 50}" for number in range(rows_each)]
            (root / f"{name}_labels.csv").write_text("class,startTime_usec,endTime_usec\n" + "\n".join(lines) + "\n")
    return root


def make_cifar10_dvs(root: Path, classes: tuple[str, ...], each: int = 10) -> Path:
    """A folder like CIFAR10-DVS with `each` recordings of 200 events a class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(each):
            rows = random_rows(100 * label + index, 200)
            (root / name / f"cifar10_{name}_{index}.aedat").write_bytes(aedat2(rows))
    return root


@pytest.fixture
def gesture(tmp_path: Path) -> Path:
    trials = {"trials_to_train.txt": ["user01_led", "user02_lab"], "trials_to_test.txt": ["user24_led"]}
    return make_gesture(tmp_path / "DvsGesture", trials, rows_each=11)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return tmp_path / "user01_led.aedat"


def test_aedat3_by_hand(recording: Path) -> None:
    """Two packets of events, the second past the 31st bit of time, and one of another type between them."""
    parts = [packet([(5, 1, 2, 1), (6, 127, 0, 0)]), packet([(1, 1, 1, 1)], kind=0), packet([(7, 3, 4, 1)], overflow=1)]
    recording.write_bytes(HEADER_3 + b"".join(parts))
    events = read_aedat3(recording)
    assert events.t.tolist() == [5, 6, 2**31 + 7]
    assert events.x.tolist() == [1, 127, 3]
    assert events.y.tolist() == [2, 0, 4]
    assert events.on.tolist() == [True, False, True]
    assert events.sensor == (128, 128)


def test_invalid_events_are_left_out(recording: Path) -> None:
    recording.write_bytes(HEADER_3 + packet([(5, 1, 2, 1)], valid=0) + packet([(6, 3, 4, 0)]))
    assert read_aedat3(recording).x.tolist() == [3]


def test_aedat2_by_hand(recording: Path) -> None:
    """Address 0x7F00 is bits 8-14 all set: column 0; bits 1-7 clear: row 127; bit 0 clear: ON. Big-endian."""
    rows = struct.pack(">IIIIII", 0x7F00, 9, 0x8000, 10, 0x00FF, 11)
    recording.write_bytes(HEADER_2 + rows)
    events = read_aedat2(recording)
    assert events.t.tolist() == [9, 11]
    assert (events.x.tolist(), events.y.tolist()) == ([0, 127], [127, 0])
    assert events.on.tolist() == [True, False]


SMALL = packet([(5, 1, 2, 1), (6, 3, 4, 0)])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (SMALL, "is no AEDAT 3.x file"),
        (b"", "is no AEDAT 3.x file"),
        (b"#!AER-DAT2.0\r\n", "is no AEDAT 3.x file: it starts with '#!AER-DAT2.0'"),
        (b"#!AER-DAT3.1", "its header has no end"),
        (HEADER_3 + SMALL[:20], "20 bytes at the end are no packet header"),
        (HEADER_3 + SMALL[:-3], "is cut short: a packet ends at byte"),
        (HEADER_3 + SMALL[:20] + b"\xff" + SMALL[21:], "contradicts itself"),
    ],
)
def test_a_broken_aedat3_is_named(recording: Path, content: bytes, says: str) -> None:
    recording.write_bytes(content)
    with pytest.raises(BrokenEvents, match=re.escape(says)) as raised:
        read_aedat3(recording)
    assert "user01_led.aedat" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0" * 16, "is no AEDAT 2.x file"),
        (HEADER_2 + b"\0" * 12, "12 bytes are no whole number of events"),
        (HEADER_2 + struct.pack(">II", 1 << 16, 0), "address 0x10000"),
    ],
)
def test_a_broken_aedat2_is_named(recording: Path, content: bytes, says: str) -> None:
    recording.write_bytes(content)
    with pytest.raises(BrokenEvents, match=says) as raised:
        read_aedat2(recording)
    assert "user01_led.aedat" in str(raised.value)


def test_gesture_becomes_frames(gesture: Path, tmp_path: Path) -> None:
    """The official lists split it; an interval has its 50 events, of the 100 after its start."""
    source = open_source(gesture, tmp_path)
    assert (source.kind, source.classes[0], len(source.classes)) == ("dvs_gesture", "hand_clapping", 11)
    manifest = build(source, tmp_path / "out")
    assert {split: entry.count for split, entry in manifest.splits.items()} == {"train": 22, "val": 11}
    assert manifest == load_manifest(tmp_path / "out") == verify(tmp_path / "out")
    assert manifest.frames is not None
    assert (manifest.frames.shape, manifest.frames.by) == ((16, 2, 48, 48), "count")
    reader = BetonReader(tmp_path / "out/train.beton")
    assert reader.labels.tolist() == [*range(11), *range(11)]
    first = reader.stored(1).reshape(16, 2, 48, 48)
    assert first.sum(axis=(1, 2, 3)).tolist() == [4, 3, 3, 3, 3, 3, 3, 3] * 2
    t, x, y, on = np.array(random_rows(1, 100, 1000)[:50]).T
    expected = to_frames(Events(t, x, y, on.astype(bool), (128, 128)), FrameRule(16))
    assert np.array_equal(first, expected)


def test_the_folder_around_gesture_serves_too(gesture: Path, tmp_path: Path) -> None:
    assert open_source(gesture.parent, tmp_path, name="gestures").kind == "dvs_gesture"


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, r"user02_lab\.aedat of DvsGesture is not a whole recording: cannot read user02_lab_labels\.csv"),
        ("", "user02_lab_labels.csv is no table"),
        ("a,b,c\n1,2,3\n", "must have the columns class,startTime_usec,endTime_usec"),
        ("class,startTime_usec,endTime_usec\n12,0,50\n", "has row \\[12, 0, 50\\]; allowed: 1 to 11"),
        ("class,startTime_usec,endTime_usec\n1,x,50\n", "no table of whole numbers"),
        ("class,startTime_usec,endTime_usec\n1,50,50\n", "from 50 to 50 of .* no events from 50 to 50"),
    ],
)
def test_odd_labels_are_named_or_skipped(gesture: Path, tmp_path: Path, labels: str | None, says: str) -> None:
    path = gesture / "user02_lab_labels.csv"
    path.unlink() if labels is None else path.write_text(labels)
    with pytest.raises(UserError, match=says):
        build(open_source(gesture, tmp_path), tmp_path / "out")
    entry = build(open_source(gesture, tmp_path), tmp_path / "out", on_error="skip").splits["train"]
    assert (entry.count, len(entry.skipped)) == (11, 1)
    assert next(iter(entry.skipped)).startswith("user02_lab.aedat")


def test_a_cut_recording_leaves_all_its_intervals_out(gesture: Path, tmp_path: Path) -> None:
    path = gesture / "user01_led.aedat"
    path.write_bytes(path.read_bytes()[:-5])
    entry = build(open_source(gesture, tmp_path), tmp_path / "out", on_error="skip").splits["train"]
    assert (entry.count, len(entry.skipped)) == (11, 11)


def test_a_missing_list_of_trials(gesture: Path, tmp_path: Path) -> None:
    (gesture / "trials_to_test.txt").write_text("")
    with pytest.raises(UserError, match=r"trials_to_test\.txt lists no recording"):
        open_source(gesture, tmp_path)
    (gesture / "trials_to_test.txt").unlink()
    with pytest.raises(UserError, match=r"Cannot read .*trials_to_test\.txt"):
        open_source(gesture, tmp_path)


@pytest.mark.parametrize("lines", ["user24_led.aedat\nuser24_led.aedat\n", "/\n", "a/user24_led.aedat\n"])
def test_an_odd_list_of_trials(gesture: Path, tmp_path: Path, lines: str) -> None:
    (gesture / "trials_to_test.txt").write_text(lines)
    with pytest.raises(UserError, match="twice, or no file's name"):
        open_source(gesture, tmp_path)


def test_a_recording_that_trains_and_tests_is_refused(gesture: Path, tmp_path: Path) -> None:
    (gesture / "trials_to_test.txt").write_text("user01_led.aedat\n")
    with pytest.raises(UserError, match="for training and for testing"):
        open_source(gesture, tmp_path)


def test_cifar10_dvs_becomes_frames(tmp_path: Path) -> None:
    root = make_cifar10_dvs(tmp_path / "CIFAR10DVS", CIFAR10_CLASSES, each=10)
    source = replace(open_source(root, tmp_path), frames=FrameRule(4, 32, "time"))
    manifest = build(source, tmp_path / "out", threads=2)
    assert (manifest.source_kind, manifest.splits["train"].count_by_class) == ("cifar10_dvs", (9,) * 10)
    assert manifest.splits["val"].count_by_class == (1,) * 10
    reader = BetonReader(tmp_path / "out/val.beton")
    t, x, y, on = np.array(random_rows(309, 200)).T
    expected = to_frames(Events(t, x, y, on.astype(bool), (128, 128)), FrameRule(4, 32, "time"))
    assert np.array_equal(reader.stored(3).reshape(4, 2, 32, 32), expected)
    build(source, tmp_path / "again", threads=1)
    assert (tmp_path / "again/train.beton").read_bytes() == (tmp_path / "out/train.beton").read_bytes()


def test_cifar10_dvs_of_another_version_is_refused(tmp_path: Path) -> None:
    root = make_cifar10_dvs(tmp_path / "CIFAR10DVS", CIFAR10_CLASSES, each=0)
    (root / "airplane/cifar10_airplane_0.aedat4").write_bytes(b"#!AER-DAT4.0\r\n")
    with pytest.raises(UserError, match=r"0 \.aedat files; .*AEDAT 4 is not read"):
        open_source(root, tmp_path)


def test_ffcvs_own_loader_reads_the_frames(gesture: Path, tmp_path: Path) -> None:
    if loaders.why_absent() is not None:
        pytest.skip("FFCV does not import here")
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption

    build(open_source(gesture, tmp_path), tmp_path / "out")
    reader = BetonReader(tmp_path / "out/val.beton")
    pipelines = {"events": [NDArrayDecoder()], "label": [IntDecoder()]}
    path = str(tmp_path / "out/val.beton")
    stock = iter(Loader(path, batch_size=11, num_workers=1, order=OrderOption.SEQUENTIAL, seed=0, pipelines=pipelines))
    frames, labels = next(stock)
    stock.close()
    assert labels.ravel().tolist() == reader.labels.tolist()
    assert (frames.shape, frames.dtype) == ((11, 16, 2, 48, 48), np.uint8)
    assert all(np.array_equal(frames[index].ravel(), reader.stored(index)) for index in range(11))


def test_the_command_builds_and_answers(gesture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    words = ["--frames", "4", "--frame-size", "24", "--frame-by", "time", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "build", str(gesture), "--out", out, *words])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["train"] == 22
    frames = load_manifest(out).frames
    assert frames is not None
    assert (frames.shape, frames.by) == ((4, 2, 24, 24), "time")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give SOURCE, or --events-from IMAGES"),
        (["here", "--events-from", "there"], "give SOURCE, or --events-from IMAGES"),
        (["--events-from", "GESTURE"], "holds recordings of events already"),
        (["GESTURE", "--frames", "0"], "--frames"),
    ],
)
def test_the_commands_mistakes(gesture: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "build", *(str(gesture) if word == "GESTURE" else word for word in words)])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert "Traceback" not in shown
