"""Training steps and exchanges of few ranks over links of several rates: measured in network namespaces, and kept."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.benchmarks.comm import Size
from pipelines.benchmarks.namespaces import network, why_not
from pipelines.benchmarks.ranks import together
from pipelines.benchmarks.scale_exchange import KINDS, Bucket, Cluster, Costs, Profile
from pipelines.benchmarks.scale_model import Link, Spread, spread_of
from pipelines.errors import UserError
from pipelines.progress import Progress, Say

MEASURED = Size(width=16, classes=100, resolution=32, batch_size=4)  # small, since slow links are what is asked of
SMALL = 64  # numbers of a sum that is hardly more than its messages
Shape = tuple[int, float | None]  # ranks, and Mbit/s of each one's link; without as fast as the machine is
FITTED: tuple[Shape, ...] = ((2, 40.0), (4, 40.0), (2, 200.0), (4, 200.0), (2, None))
HELD_OUT: tuple[Shape, ...] = ((2, 100.0), (3, 100.0), (4, 100.0))


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


Told = tuple[int, list[tuple[int, int]]]  # a bucket's numbers, and `[O, L]` of binary weights
Times = list[float]  # seconds at which each bucket of a step is ready, and its end


class Steps(_Kept):
    """Steps of one worker without exchanges; processor seconds of an exchange by kind, with nobody to send to."""

    buckets: list[Told] = Field(min_length=1)
    steps: list[Times] = Field(min_length=4)
    work: dict[str, list[float]]

    def profile(self) -> Profile:
        """Medians over steps."""
        return _profile(self.buckets, np.median(self.steps, axis=0).tolist())

    def costs(self, costs: Costs) -> Costs:
        """The same with this network's own casts and signs: small layers take longer by the number than large ones."""
        buckets = self.profile().buckets
        numbers, signs = sum(each.numbers for each in buckets), sum(each.signs for each in buckets)
        sent = median(self.work["fp32"])  # DDP divides, gloo copies
        cast = max(0.0, median(self.work["bf16"]) - sent) / numbers
        alone = Cluster(1, 1, Link(0.0, 0.0), Link(0.0, 0.0))
        coded = sum(alone.coded(each, "ring") for each in buckets)
        code = max(0.0, median(self.work["sign"]) - cast * (numbers - signs)) / coded
        return replace(costs, cast=cast, code=code)

    def spread(self) -> Spread:
        """How steps differ."""
        return spread_of([step[-1] for step in self.steps])


def _profile(buckets: Sequence[Told], times: Times) -> Profile:
    return Profile(tuple(Bucket(count, tuple(latent)) for count, latent in buckets), tuple(times[:-1]), times[-1])


class Exchanged(_Kept):
    """Bytes that a rank sends for an exchange, and seconds of each exchange and training step."""

    bytes: int
    exchange: list[float] = Field(min_length=2)
    step: list[float] = Field(min_length=2)


class Shaped(_Kept):
    """What ranks did whose links had a rate each way."""

    ranks: int = Field(ge=2)
    rate_mbit: float | None = Field(gt=0)  # none: not shaped
    crowd: float = Field(ge=1)  # ranks to a core
    fitted: bool  # whether the model may learn from it, or is held against it
    kinds: dict[str, Exchanged]
    message: list[float] = Field(min_length=2)  # seconds of an all-reduce of SMALL float32 numbers
    buckets: list[Told] = Field(min_length=1)
    steps: list[list[Times]] = Field(min_length=2)  # without exchanges: of each round, of each rank

    @property
    def rate(self) -> str:
        """For people."""
        return f"{self.rate_mbit:g} Mbit/s" if self.rate_mbit else "no limit"

    def rounds(self) -> list[Profile]:
        """A step of each round, whose buckets are ready when the last rank's are."""
        return [_profile(self.buckets, np.max(ranks, axis=0).tolist()) for ranks in self.steps]


class Links(_Kept):
    """Everything that was measured, and on what."""

    processor: str
    shaped: list[Shaped] = Field(min_length=1)

    def jitter(self) -> Spread:
        """How exchanges of one kind over one link differ."""
        every = [its.exchange for shaped in self.shaped for its in shaped.kinds.values()]
        return spread_of([seconds / median(its) for its in every for seconds in its])


def measure(rounds: int, processor: str, say: Say, shapes: Sequence[tuple[Shape, bool]] = ()) -> Links:
    """Measure all shapes, by default `FITTED` and `HELD_OUT`, each with ranks in namespaces of their own.

    Raises UserError where there can be none; ServiceError where a rank fails.
    """
    if reason := why_not():
        raise UserError(
            f"Links of a rate of their own cannot be made here: {reason}. Run it as root on Linux, or give "
            "measurements of another run with --links FILE; each run keeps them as links.json in --out."
        )
    shapes = shapes or [*((shape, True) for shape in FITTED), *((shape, False) for shape in HELD_OUT)]
    found = []
    with Progress(len(shapes), "links", " shape") as progress:
        for shape, fitted in shapes:
            found.append(_measure(shape, rounds, fitted=fitted))
            say(f"{found[-1].ranks} ranks have exchanged gradients over links of {found[-1].rate}")
            progress.advance()
    return Links(processor=processor, shaped=found)


def _measure(shape: Shape, rounds: int, *, fitted: bool) -> Shaped:
    ranks, rate = shape
    job = {"size": asdict(MEASURED), "rounds": rounds, "kinds": list(KINDS), "small": SMALL}
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch, network(ranks, rate) as nodes:
        every = together("pipelines.benchmarks.scale_rank:measure", job, ranks, Path(scratch), nodes)
    kinds = {kind: Exchanged(**{name: every[0][kind][name] for name in Exchanged.model_fields}) for kind in KINDS}
    crowd = max(1.0, ranks / len(os.sched_getaffinity(0)))
    told = {
        "message": every[0]["message"],
        "buckets": every[0]["buckets"],
        "steps": list(zip(*(its["steps"] for its in every), strict=True)),
    }
    return Shaped(ranks=ranks, rate_mbit=rate, crowd=crowd, fitted=fitted, kinds=kinds, **told)


def profile_of(size: Size, steps: int, say: Say) -> Steps:
    """A training step of one worker on a core of this machine, without exchanges."""
    say(f"one worker trains {size.arch}, width {size.width}, {size.resolution} px, batch {size.batch_size}")
    job = {"size": asdict(size), "steps": steps, "kinds": list(KINDS)}
    with tempfile.TemporaryDirectory(prefix="agmm-bench-") as scratch:
        return Steps(**together("pipelines.benchmarks.scale_rank:profile", job, 1, Path(scratch))[0])


def load(path: Path) -> Links:
    """What `save` wrote. Raises UserError for a file that is none of these."""
    try:
        return Links.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
    except (OSError, ValueError) as error:
        why = str(error)
    raise UserError(f"--links {path} is no file of this version of `agmm bench scale`. {why}. Measure anew without it.")


def save(links: Links, path: Path) -> None:
    """Keep it for `--links`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(links.model_dump_json(indent=1) + "\n", encoding="utf-8")
