import hashlib
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data import saccade as module
from pipelines.data.build import build
from pipelines.data.events import check_events
from pipelines.data.manifest import load_manifest
from pipelines.data.saccade import BLACK, LEG, LOOPS, THRESHOLD, on_screen, path, saccade, simulated
from pipelines.data.samples import Sample, Source
from pipelines.data.sources import choose_frames
from pipelines.errors import UserError

SCREEN = 128 + 2 * LEG


def brightness(thresholds: float) -> float:
    """The grey level that lies so many thresholds above black."""
    return float(BLACK * np.exp(thresholds * THRESHOLD) - BLACK)


def test_the_path_is_a_closed_square_on_its_corner() -> None:
    places = path()
    assert len(places) == 4 * LEG * LOOPS + 1
    assert places[0] == places[4 * LEG] == places[-1] == (0, LEG)
    assert (places[LEG], places[2 * LEG], places[3 * LEG]) == ((LEG, 2 * LEG), (2 * LEG, LEG), (LEG, 0))


def test_an_even_screen_gives_no_events() -> None:
    assert len(saccade(np.full((SCREEN, SCREEN), 80, np.float32))) == 0


def test_one_bright_point_by_hand() -> None:
    """A point 2.5 thresholds up fires twice where it appears and where it leaves, after 1/2.5 and 2/2.5 of a step."""
    screen = np.zeros((SCREEN, SCREEN), np.float32)
    screen[40, 40 + LEG] = brightness(2.5)
    events = saccade(screen)
    step_us = 200_000 / (4 * LEG)
    first = events.t < step_us
    # The sensor moves down and right: the point, seen in column and row 40, goes up and left.
    seen = sorted(zip(events.x[first].tolist(), events.y[first].tolist(), events.on[first].tolist(), strict=True))
    assert seen == [(39, 39, True)] * 2 + [(40, 40, False)] * 2
    assert events.t[first][[0, 1, 2, 3]] == pytest.approx(step_us * np.array([0.4, 0.4, 0.8, 0.8]), abs=step_us / 100)
    # Each pixel keeps half a threshold, and no event is lost: one loop has as many ON as OFF.
    assert events.on.sum() * 2 == len(events) == 4 * 4 * LEG * LOOPS


def test_an_edge_that_darkens_is_off() -> None:
    """Dark on the left, bright on the right: while the sensor moves right, pixels at the edge brighten."""
    screen = np.zeros((SCREEN, SCREEN), np.float32)
    screen[:, SCREEN // 2 :] = brightness(1.5)
    events = saccade(screen)
    check_events(events)
    leg = (events.t // (200_000 / 4)).astype(int) % 4
    assert events.on[leg == 0].all()
    assert not events.on[leg == 1].any()


def test_the_central_square_is_enlarged_or_shrunk() -> None:
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = (255, 255, 255)
    assert on_screen(wide).min() > 254
    assert on_screen(np.full((500, 300, 3), 9, np.uint8)).shape == (SCREEN, SCREEN)
    assert on_screen(np.full((8, 8, 3), (255, 0, 0), np.uint8)) == pytest.approx(0.299 * 255)


def _images() -> Source:
    def load(seed: int) -> bytes:
        out = io.BytesIO()
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(out, "PNG" if seed % 2 else "JPEG")
        return out.getvalue()

    samples = [Sample(seed % 2, str(seed), partial(load, seed)) for seed in range(4)]
    return Source("blobs", "folder", ("a", "b"), {"train": samples, "val": samples[:2]}, 1000)


def test_a_source_of_images_becomes_a_data_set_of_events(tmp_path: Path) -> None:
    source = choose_frames(simulated(_images()), 5, 24, "time")
    manifest = build(source, tmp_path / "a", threads=2)
    build(source, tmp_path / "b", threads=1)
    digests = [hashlib.sha256((tmp_path / folder / "train.beton").read_bytes()).digest() for folder in "ab"]
    assert digests[0] == digests[1]
    assert (manifest.name, manifest.source_kind) == ("blobs_events", "saccade of folder")
    assert manifest == load_manifest(tmp_path / "a")
    assert manifest.frames is not None
    assert (manifest.frames.shape, manifest.frames.by) == ((5, 2, 24, 24), "time")
    assert manifest.frames.settings["threshold"] == module.THRESHOLD


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    source = _images()
    source.splits["train"][1] = Sample(1, "odd.png", lambda: b"no image")  # type: ignore[index]
    with pytest.raises(UserError, match=r"odd\.png of blobs_events is not a whole recording"):
        build(simulated(source), tmp_path / "out")


def test_what_cannot_be_simulated_or_framed() -> None:
    with pytest.raises(UserError, match=r"holds recordings of events already"):
        simulated(simulated(_images()))
    with pytest.raises(UserError, match=r"--frames.*blobs has images.*--events-from"):
        choose_frames(_images(), 4, None, None)
    assert choose_frames(_images(), None, None, None).frames is None
