"""Images made smaller when a data set is built: decoding is bound by compressed bytes, and a crop needs few of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import overload

from PIL import Image

from pipelines.data.events import Events
from pipelines.data.images import prepare, rgb_pixels
from pipelines.data.samples import Payload, Reencoding, Sample, Source
from pipelines.errors import UserError


def smaller(source: Source, rule: Reencoding) -> Source:
    """The source with its large images re-encoded; smaller ones stay as they came. Raises UserError for recordings."""
    if source.frames is not None:
        raise UserError(f"{source.name} has recordings, not images. Use --frame-size in place of --short-side.")
    splits = {split: _Smaller(samples, rule) for split, samples in source.splits.items()}
    return replace(source, splits=splits, reencoding=rule)


class _Smaller(Sequence[Sample]):
    """Samples are made when asked for: there may be millions."""

    def __init__(self, samples: Sequence[Sample], rule: Reencoding) -> None:
        self._samples, self._rule = samples, rule

    def __len__(self) -> int:
        return len(self._samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> _Smaller: ...

    def __getitem__(self, index: int | slice) -> Sample | _Smaller:
        if isinstance(index, slice):
            return _Smaller(self._samples[index], self._rule)
        sample = self._samples[index]
        return replace(sample, load=partial(_load_smaller, sample.load, self._rule))


def _load_smaller(load: Callable[[], Payload], rule: Reencoding) -> Payload:
    payload = load()
    assert not isinstance(payload, Events)
    prepared = prepare(payload)
    if min(prepared.height, prepared.width) <= rule.short_side:
        return payload
    image = Image.fromarray(rgb_pixels(prepared))
    factor = rule.short_side / min(image.size)
    width, height = (max(round(side * factor), 1) for side in image.size)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=rule.quality)
    return out.getvalue()
