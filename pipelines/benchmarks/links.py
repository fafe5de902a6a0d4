"""Training steps and exchanges of few ranks over links of several rates: measured in network namespaces, and kept."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.benchmarks.comm import Size
from pipelines.benchmarks.namespaces import network, why_not
from pipelines.benchmarks.ranks import together
from pipelines.benchmarks.scale_exchange import KINDS, Bucket, Profile
from pipelines.benchmarks.scale_model import Spread, spread_of
from pipelines.errors import UserError
from pipelines.progress import Progress, Say

MEASURED = Size(width=16, classes=100, resolution=32, batch_size=4)  # small, since slow links are what is asked of
FITTED = ((2, 20.0), (4, 20.0), (2, 100.0), (4, 100.0), (2, 1000.0))  # ranks, and Mbit/s of each one's link
HELD_OUT = ((2, 50.0), (3, 50.0), (4, 50.0))
TENTH = 0.1
_STEPS = 20


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Steps(_Kept):
    """Buckets as `[numbers, [[O, L] of binary weights]]`; seconds at which each is ready, and the end, of each step."""

    buckets: list[tuple[int, list[tuple[int, int]]]] = Field(min_length=1)
    steps: list[list[float]] = Field(min_length=4)

    def profile(self, share: float = 0.5) -> Profile:
        """Of the step that so many steps are faster than, by default the median."""
        *ready, compute = np.quantile(self.steps, share, axis=0).tolist()
        return Profile(tuple(Bucket(n, tuple(latent)) for n, latent in self.buckets), tuple(ready), compute)

    def spread(self) -> Spread:
        """How steps differ."""
        return spread_of([step[-1] for step in self.steps])


class Exchanged(_Kept):
    """Bytes that a rank sends for an exchange, and seconds of each exchange and training step."""

    bytes: int
    exchange: list[float] = Field(min_length=2)
    step: list[float] = Field(min_length=2)


class Shaped(_Kept):
    """What ranks did whose links had a rate each way."""

    ranks: int = Field(ge=2)
    rate_mbit: float = Field(gt=0)
    fitted: bool  # whether the model may learn from it, or is held against it
    kinds: dict[str, Exchanged]
    profile: Steps


class Links(_Kept):
    """Everything that was measured, and on what."""

    processor: str
    shaped: list[Shaped] = Field(min_length=1)

    def jitter(self) -> Spread:
        """How exchanges of one kind over one link differ."""
        every = [its.exchange for shaped in self.shaped for its in shaped.kinds.values()]
        return spread_of([seconds / median(its) for its in every for seconds in its])


def measure(rounds: int, processor: str, say: Say, shapes: Sequence[tuple[int, float, bool]] = ()) -> Links:
    """Measure all shapes, by default `FITTED` and `HELD_OUT`, each with ranks in namespaces of their own.

    Raises UserError where there can be none; ServiceError where a rank fails.
    """
    if reason := why_not():
        raise UserError(
            f"Links of a rate of their own cannot be made here: {reason}. Run it as root on Linux, or give "
            "measurements of another run with --links FILE; each run keeps them as links.json in --out."
        )
    shapes = shapes or [*((*shape, True) for shape in FITTED), *((*shape, False) for shape in HELD_OUT)]
    found = []
    with Progress(len(shapes), "links", " shape") as progress:
        for ranks, rate, fitted in shapes:
            say(f"{ranks} ranks exchange gradients over links of {rate:g} Mbit/s")
            found.append(_measure(ranks, rate, rounds, fitted=fitted))
            progress.advance()
    return Links(processor=processor, shaped=found)


def _measure(ranks: int, rate: float, rounds: int, *, fitted: bool) -> Shaped:
    job = {"size": asdict(MEASURED), "rounds": rounds, "kinds": list(KINDS), "steps": _STEPS}
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch, network(ranks, rate) as nodes:
        every = together("pipelines.benchmarks.scale_rank:measure", job, ranks, Path(scratch), nodes)
    kinds = {kind: Exchanged(**{name: every[0][kind][name] for name in Exchanged.model_fields}) for kind in KINDS}
    steps = [step for its in every for step in its["profile"]["steps"]]
    profile = Steps(buckets=every[0]["profile"]["buckets"], steps=steps)
    return Shaped(ranks=ranks, rate_mbit=rate, fitted=fitted, kinds=kinds, profile=profile)


def undisturbed(seconds: Sequence[float]) -> float:
    """What a tenth is below: other work on the machine only ever adds."""
    return float(np.quantile(seconds, TENTH))


def profile_of(size: Size, steps: int, say: Say) -> Steps:
    """A training step of one worker on a core of this machine, without exchanges."""
    say(f"one worker trains {size.arch}, width {size.width}, {size.resolution} px, batch {size.batch_size}")
    job = {"size": asdict(size), "steps": steps}
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch:
        return Steps(**together("pipelines.benchmarks.scale_rank:profile", job, 1, Path(scratch))[0])


def load(path: Path) -> Links:
    """What `save` wrote. Raises UserError for a file that is none of these."""
    try:
        return Links.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
        raise UserError(f"--links {path} is no file of `agmm bench scale`: {error}") from error


def save(links: Links, path: Path) -> None:
    """Keep it for `--links`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(links.model_dump_json(indent=1) + "\n", encoding="utf-8")
