"""What a `.beton` file holds of a sample: FFCV's field descriptors and the record that they ask for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

JPG, RAW, FRAMES = 0, 1, 2

FIELD = np.dtype([("type_id", "<u1"), ("name", "S16"), ("arguments", "<u1", (1024,))])
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_IMAGE_SAMPLE = np.dtype({"names": ["image", "label"], "formats": [_IMAGE, "<i8"], "offsets": [0, 16], "itemsize": 24})
_FRAMES_SAMPLE = np.dtype([("events", "<u8"), ("label", "<i8")])

# Type numbers of FFCV's fields.
_INT, _RGB_IMAGE, _ARRAY = 1, 2, 4
_MOST_AXES = 32

Records = npt.NDArray[np.void]
Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layout:
    """A label and either an image of any size or, where `frames` is their shape (T, 2, H, W), event frames uint8."""

    frames: Shape | None = None

    @property
    def sample(self) -> np.dtype[Any]:
        """A sample's record."""
        return _IMAGE_SAMPLE if self.frames is None else _FRAMES_SAMPLE

    @property
    def fields(self) -> Records:
        """FFCV's two field descriptors."""
        none = np.zeros(FIELD["arguments"].shape, "<u1")
        first = (_RGB_IMAGE, b"image", none) if self.frames is None else (_ARRAY, b"events", _arguments(self.frames))
        return np.array([first, (_INT, b"label", none)], FIELD)

    def record(self, label: int, mode: int, height: int, width: int, pointer: int) -> tuple[Any, int]:
        """The record of one sample whose bytes are at `pointer`."""
        return (pointer if self.frames is not None else (mode, width, height, pointer)), label

    def columns(self, records: Records) -> tuple[npt.NDArray[Any], ...]:
        """(mode, height, width, pointer) of every record, each [N]."""
        if self.frames is None:
            image = records["image"]
            return image["mode"], image["height"], image["width"], image["data_ptr"]
        same = np.ones(len(records), np.int32)
        return FRAMES * same, self.frames[2] * same, self.frames[3] * same, records["events"]

    def sound(self, records: Records, sizes: npt.NDArray[np.int64]) -> bool:
        """Whether stored `sizes` in bytes [N] are what the records claim; a JPEG file may have any."""
        mode, height, width, _ = self.columns(records)
        if self.frames is not None:
            return bool(np.all(sizes == np.prod(self.frames)))
        pixels = height.astype(np.int64) * width * 3
        return bool(np.all(sizes > 0) and np.all(pixels > 0) and np.all((mode == JPG) | _raw(mode, sizes, pixels)))


def _raw(mode: Any, sizes: Any, pixels: Any) -> Any:
    return (mode == RAW) & (sizes == pixels)


def layout_of(fields: Records) -> Layout | None:
    """The layout that two field descriptors say, None when it is none of ours."""
    shape = tuple(int(side) for side in fields[0]["arguments"][:32].view("<u8"))
    layout = Layout() if fields[0]["type_id"] == _RGB_IMAGE else Layout((shape[0], shape[1], shape[2], shape[3]))
    return layout if fields.tobytes() == layout.fields.tobytes() else None


def _arguments(shape: Shape) -> npt.NDArray[np.uint8]:
    """What FFCV's NDArrayField says of uint8 arrays of a shape: the sides, the length of the type's text, the text."""
    text = json.dumps(np.dtype("u1").descr).encode("ascii")
    sides = [*shape, *[0] * (_MOST_AXES - len(shape)), len(text)]
    content = np.array(sides, "<u8").tobytes() + text
    return np.frombuffer(content.ljust(FIELD["arguments"].itemsize, b"\0"), np.uint8)
