"""What a network's gradients cost to exchange among many workers, by the kind of gradients and the algorithm.

The patterns are those of `agmm.exchange`: float32 and bfloat16 are summed; signs go from every worker to the one that
averages their rows, and back to all around a ring, and all other gradients are summed as bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agmm.exchange.sign import message_bytes
from pipelines.benchmarks.scale_model import Link, gathered, hierarchical, overlapped, ring, spread_out, tree
from pipelines.config import GradientsConfig

KINDS = ("fp32", "bf16", "sign")
ALGORITHMS = ("ring", "tree", "hierarchical")


@dataclass(frozen=True)
class Bucket:
    """Gradients that DDP exchanges together: how many `numbers`, and `[O, L]` of the binary weights among them."""

    numbers: int
    latent: tuple[tuple[int, int], ...] = ()

    @property
    def signs(self) -> int:
        """Numbers of which only the sign acts."""
        return sum(count * length for count, length in self.latent)

    def part(self, workers: int) -> int:
        """Bytes of signs and scales for one worker's rows."""
        return sum(message_bytes(-(-count // workers), length) for count, length in self.latent)


@dataclass(frozen=True)
class Profile:
    """A training step without exchanges: its buckets, seconds after its start at which each is ready, and all of it."""

    buckets: tuple[Bucket, ...]
    ready: tuple[float, ...]
    compute: float

    def times(self, factor: float) -> Profile:
        """The same on a device that takes so many times as long."""
        return replace(self, ready=tuple(at * factor for at in self.ready), compute=self.compute * factor)


@dataclass(frozen=True)
class Costs:
    """Seconds of a message; bytes on the wire by bytes sent; seconds of a byte sent, beside the wire's.

    And of one number as bfloat16 and back, and of one as a sign, or back.
    """

    message: float
    overhead: float
    byte: float
    cast: float
    code: float

    def crowded(self, workers: float) -> Costs:
        """The same where so many workers share a core, which has the work of all of them to do."""
        return replace(self, byte=self.byte * workers, cast=self.cast * workers, code=self.code * workers)

    def link(self, rate_mbit: float | None, latency: float = 0.0) -> Link:
        """A link of a rate, without one as fast as the machine; and seconds of latency beside a message's here."""
        wire = self.overhead * 8 / (rate_mbit * 1e6) if rate_mbit else 0.0
        return Link(self.message + latency, wire + self.byte)


@dataclass(frozen=True)
class Cluster:
    """So many workers, `each` of them on a node; the links between nodes and inside one."""

    workers: int
    each: int
    outer: Link
    inner: Link

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return -(-self.workers // self.each)

    def sum(self, size: float, algorithm: str) -> float:
        """Seconds of an all-reduce of so many bytes. Rings and trees go at the pace of the slowest link in them."""
        link = self.outer if self.nodes > 1 else self.inner
        if algorithm == "ring":
            return ring(size, self.workers, link)
        if algorithm == "tree":
            return tree(size, self.workers, link)
        return hierarchical(size, self.nodes, min(self.each, self.workers), self.outer, self.inner)

    def signs(self, bucket: Bucket, algorithm: str) -> float:
        """Seconds of the signs of a bucket. Flat, as it is written, for a ring or a tree of the rest.

        Hierarchical is a projection: a node's workers sum their gradients as bfloat16, each its share, which it
        exchanges as signs with its like of other nodes, and passes on inside.
        """
        each = min(self.each, self.workers)
        if algorithm != "hierarchical":
            part, link = bucket.part(self.workers), self.outer if self.nodes > 1 else self.inner
            return spread_out(part, self.workers, each, self.outer, self.inner) + gathered(part, self.workers, link)
        part = bucket.part(self.nodes)  # of all shares of a node together
        among = spread_out(part, self.nodes, 1, self.outer, self.inner) + gathered(part, self.nodes, self.outer)
        inside = ring(2 * bucket.signs, each, self.inner) / 2 + gathered(self.nodes * part / each, each, self.inner)
        return among + inside

    def coded(self, bucket: Bucket, algorithm: str) -> float:
        """Numbers of a bucket that a worker makes signs of, or reads from signs.

        It encodes its own and sees what is left of them, reads all ranks' of its rows, encodes their averages and sees
        what is left, and reads all answers. Hierarchical the first three are of its share of the node's.
        """
        if algorithm != "hierarchical":
            return (4 + 2 / self.workers) * bucket.signs
        return (1 + (3 + 2 / self.nodes) / min(self.each, self.workers)) * bucket.signs


def exchange_seconds(bucket: Bucket, kind: str, algorithm: str, cluster: Cluster, costs: Costs) -> float:
    """One bucket's exchange, between whole steps."""
    if cluster.workers == 1:
        return 0.0
    if kind == "fp32":
        return cluster.sum(4 * bucket.numbers, algorithm)
    others = bucket.numbers - (bucket.signs if kind == "sign" else 0)
    rounded = cluster.sum(2 * others, algorithm) + costs.cast * others if others else 0.0
    if kind == "bf16" or not bucket.latent:
        return rounded
    return rounded + cluster.signs(bucket, algorithm) + costs.code * cluster.coded(bucket, algorithm)


def step_seconds(
    profile: Profile, kind: str, exchange: Callable[[Bucket, str], float], *, whole: bool = False
) -> float:
    """A step. Signs are exchanged within the backward pass, which waits for them; whole steps are of bfloat16."""
    kind = "bf16" if whole and kind == "sign" else kind
    seconds = [exchange(bucket, kind) for bucket in profile.buckets]
    if kind == "sign":
        return profile.compute + sum(seconds)
    return overlapped(profile.compute, profile.ready, seconds)


def mean_step(profile: Profile, kind: str, exchange: Callable[[Bucket, str], float]) -> float:
    """The mean over one whole step and those between it and the next, as `run.gradients.whole_every` has it."""
    every = GradientsConfig().whole_every
    between = step_seconds(profile, kind, exchange)
    return (between * (every - 1) + step_seconds(profile, kind, exchange, whole=True)) / every


def features(
    buckets: Sequence[Bucket], kind: str, workers: int, rate_mbit: float | None, crowd: float = 1.0
) -> list[float]:
    """How much of each of `Costs` an exchange of all buckets has, with a link for each worker: what is fitted.

    crowd: workers that share a core.
    """

    def only(**one: float) -> float:
        nothing = {"message": 0.0, "overhead": 0.0, "byte": 0.0, "cast": 0.0, "code": 0.0}
        costs = Costs(**(nothing | one)).crowded(crowd)
        link = costs.link(rate_mbit)
        cluster = Cluster(workers, 1, link, link)
        return sum(exchange_seconds(bucket, kind, "ring", cluster, costs) for bucket in buckets)

    return [only(**{name: 1.0}) for name in Costs.__dataclass_fields__]
