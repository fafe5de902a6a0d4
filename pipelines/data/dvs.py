"""DVS-Gesture and CIFAR10-DVS as published: which recordings there are, their classes and their splits."""

from __future__ import annotations

import csv
import threading
from functools import lru_cache, partial
from pathlib import Path

from pipelines.data.aedat import read_aedat2, read_aedat3
from pipelines.data.events import BrokenEvents, Events, FrameRule
from pipelines.data.packed_files import CIFAR10_CLASSES
from pipelines.data.samples import Sample, Source
from pipelines.errors import UserError

# In the order of DVS-Gesture's gesture_mapping.csv, which counts from 1.
GESTURES = (
    *("hand_clapping", "right_hand_wave", "left_hand_wave", "right_arm_clockwise", "right_arm_counter_clockwise"),
    *("left_arm_clockwise", "left_arm_counter_clockwise", "arm_roll", "air_drums", "air_guitar", "other_gestures"),
)
_TRIALS = {"train": "trials_to_train.txt", "val": "trials_to_test.txt"}
_COLUMNS = ["class", "startTime_usec", "endTime_usec"]

# One in ten of a class, the last by name, validates: 900 and 100 of the published 1,000.
_VALIDATION_SHARE = 10

_reading = threading.Lock()


def open_gesture(path: Path, name: str) -> Source | None:
    """DVS-Gesture's folder (DvsGesture, or the one around it) with the official split; None when it is something else.

    A sample is one labelled interval of a recording. Raises UserError where a list of recordings is missing or empty.
    """
    root = path if (path / _TRIALS["train"]).is_file() else path / "DvsGesture"
    if not (root / _TRIALS["train"]).is_file():
        return None
    splits = {split: _trials(root, listed) for split, listed in _TRIALS.items()}
    both = {sample.name for sample in splits["train"]} & {sample.name for sample in splits["val"]}
    if both:
        raise UserError(
            f"{min(both)} of {root} is listed for training and for testing. Unpack DvsGesture.tar.gz again."
        )
    return Source(name, "dvs_gesture", GESTURES, splits, 0, FrameRule(16))


def _trials(root: Path, listed: str) -> list[Sample]:
    try:
        lines = (root / listed).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {root / listed}: {error}. Unpack DvsGesture.tar.gz again.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{root / listed} lists no recording. Unpack DvsGesture.tar.gz again.")
    if odd := [name for name in names if Path(name).name != name or names.count(name) > 1]:
        raise UserError(f"{root / listed} lists {odd[0]!r} twice, or no file's name. Unpack DvsGesture.tar.gz again.")
    return [sample for recording in names for sample in _intervals(root / recording)]


def _intervals(recording: Path) -> list[Sample]:
    """The labelled intervals of a recording; where its labels cannot be read, one sample that says so when loaded."""
    labels = recording.with_name(f"{recording.stem}_labels.csv")
    try:
        rows = _read_labels(labels)
    except BrokenEvents as error:
        return [Sample(0, recording.name, partial(_fail, str(error)))]
    return [
        Sample(label, f"{recording.name} from {start} to {end}", partial(_cut, recording, start, end))
        for label, start, end in rows
    ]


def _read_labels(path: Path) -> list[tuple[int, int, int]]:
    """(label from 0, start, end in microseconds) of every row. Raises BrokenEvents."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            head, *rows = [row for row in csv.reader(stream) if row]
        numbers = [tuple(int(value) for value in row) for row in rows]
    except OSError as error:
        raise BrokenEvents(f"cannot read {path.name}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise BrokenEvents(f"{path.name} is no table of whole numbers: {error}") from error
    if head != _COLUMNS or not numbers:
        raise BrokenEvents(f"{path.name} must have the columns {','.join(_COLUMNS)} and a row or more, it has {head}")
    for row in numbers:
        if len(row) != len(_COLUMNS) or not 1 <= row[0] <= len(GESTURES):
            raise BrokenEvents(f"{path.name} has row {list(row)}; allowed: 1 to {len(GESTURES)}, start, end")
    return [(row[0] - 1, row[1], row[2]) for row in numbers]


def _fail(why: str) -> Events:
    raise BrokenEvents(why)


def _cut(recording: Path, start: int, end: int) -> Events:
    # One at a time: the intervals of a recording come one after the other, and all need the same file.
    with _reading:
        events = _recording(recording)
    return events.between(start, end)


@lru_cache(maxsize=2)
def _recording(path: Path) -> Events:
    return read_aedat3(path)


def open_cifar10_dvs(path: Path, name: str) -> Source | None:
    """CIFAR10-DVS: ten class folders of .aedat files; None when it is something else.

    Of each class, in the order of file names, the first nine of ten train and the rest validates.
    Raises UserError where a class has fewer than two files, or the files are of another version.
    """
    folders = [path / label for label in CIFAR10_CLASSES]
    if not all(folder.is_dir() for folder in folders):
        return None
    files = [sorted(folder.glob("*.aedat")) for folder in folders]
    if not any(files) and not any(folder.glob("*.aedat4") for folder in folders):
        return None
    splits: dict[str, list[Sample]] = {"train": [], "val": []}
    for label, (folder, found) in enumerate(zip(folders, files, strict=True)):
        if len(found) < 2:
            raise UserError(
                f"{folder} has {len(found)} .aedat files; CIFAR10-DVS has 1,000 a class, in AEDAT 2.0. Unpack the "
                "published archives; a conversion to AEDAT 4 is not read."
            )
        kept = len(found) - max(1, len(found) // _VALIDATION_SHARE)
        for split, part in (("train", found[:kept]), ("val", found[kept:])):
            splits[split] += [Sample(label, f"{folder.name}/{file.name}", partial(read_aedat2, file)) for file in part]
    return Source(name, "cifar10_dvs", CIFAR10_CLASSES, splits, 0, FrameRule(10))
