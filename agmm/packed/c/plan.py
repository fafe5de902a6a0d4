"""Where everything lies in the memory of a network in C: shapes, offsets and sizes, all known before it runs.

A block's output takes the place of its input, step by step, so that the stream needs little more than its largest
tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from agmm.packed.description import POOLED, Block, Description

_MOST = (1 << 31) - 1  # of an int in C: of offsets, and of sums over the pixels
_TAPS = 9
_FLOAT, _INT, _SHORT = 4, 4, 2


@dataclass(frozen=True)
class Map:
    """A tensor of the stream: `[rows][columns][channels]` for each step, from value `at`, `step` values apart."""

    rows: int
    columns: int
    channels: int
    at: int = 0
    step: int = 0

    @property
    def pixels(self) -> int:
        return self.rows * self.columns

    @property
    def size(self) -> int:
        return self.pixels * self.channels

    def pooled(self, stride: int) -> Map:
        return Map(-(-self.rows // stride), -(-self.columns // stride), self.channels)


@dataclass(frozen=True)
class Plan:
    """What a network needs.

    Attributes:
        stem: of the stem's convolution, before a max-pool.
        maps: the stem's output, and each block's behind it.
        sizes: elements of each static array of the file, by the name of its size there.

    """

    stem: Map
    maps: tuple[Map, ...]
    sizes: dict[str, int]

    @property
    def ram_bytes(self) -> int:
        """Of all static memory; beside it the caller has the input, and the stack some hundred bytes."""
        size = self.sizes
        values = ("STREAM", "MEMBRANE", "WINDOW", "FEATURES", "CLASSES")
        words = ("SPIKES", "POOLED", "PATCH")
        channels = 3 * _FLOAT + _INT
        return (
            sum(_FLOAT * size[name] for name in values)
            + sum(_INT * size[name] for name in words)
            + _SHORT * size["RESULTS"]
            + channels * size["CHANNELS"]
        )


def words(bits: int) -> int:
    """32-bit words for so many bits."""
    return -(-bits // 32)


def plan(description: Description) -> Plan:
    """The memory of a network. Raises ValueError for one that is larger than a 32-bit processor can count."""
    stem = Map(description.input.height, description.input.width, description.stem.channels).pooled(
        description.stem.stride
    )
    maps = [stem.pooled(2 if description.stem.max_pool else 1)]
    for block in description.blocks:
        out = maps[-1].pooled(2 if block.pool else 1).pooled(block.stride)
        maps.append(Map(out.rows, out.columns, block.out_channels))
    placed = _placed(description, maps)
    sizes = _sizes(description, placed)
    found = Plan(stem, placed, sizes)
    _check(description, found)
    return found


def _placed(description: Description, maps: list[Map]) -> tuple[Map, ...]:
    """The maps, each as far before the one that it replaces as it must be, and the first of all at 0."""
    steps = [maps[0].size if description.input.frames else 0] + [one.size for one in maps[1:]]
    ats = [0]
    for number, block in enumerate(description.blocks):
        taken, given = maps[number], maps[number + 1]
        ats.append(ats[-1] - _lead(block, taken, given, steps[number], description.time_steps))
    first = min(ats)
    return tuple(
        Map(one.rows, one.columns, one.channels, at - first, step)
        for one, at, step in zip(maps, ats, steps, strict=True)
    )


def _lead(block: Block, taken: Map, given: Map, step: int, time_steps: int) -> int:
    """By how many values an output must begin before its input, so that none is written over before its last use.

    Per step t the output's values [t * size, (t + 1) * size) come; the input's from (t + 1) * step on are still needed
    (all of them where one map serves every step), and of this step's those that later pixels of a shortcut see.
    """
    last = time_steps - 1
    later = last * given.size if step == 0 else max(given.size - step, last * (given.size - step))
    behind = max(0, last * (given.size - step))
    if block.shortcut == "none":
        return max(0, later) if last else 0
    return max(0, later if last else 0, behind + _overtaken(block, taken, given))


def _overtaken(block: Block, taken: Map, given: Map) -> int:
    """By how many values the output written so far is ahead of the input that is still to be read, at most.

    It grows or shrinks evenly along a row and from row to row, so that the ends tell.
    """
    most, stride = 0, block.stride
    for row in {0, given.rows - 2, given.rows - 1}:
        for column in {0, given.columns - 2}:
            if row >= 0 and 0 <= column < given.columns - 1:
                written = (row * given.columns + column + 1) * given.channels
                most = max(most, written - stride * (row * taken.columns + column + 1) * taken.channels)
        if 0 <= row < given.rows - 1:
            written = (row + 1) * given.columns * given.channels
            most = max(most, written - stride * (row + 1) * taken.columns * taken.channels)
    return most


def _sizes(description: Description, maps: tuple[Map, ...]) -> dict[str, int]:
    tail, steps = description.tail, description.time_steps
    takers = list(zip(description.blocks, maps, strict=False))
    firing = [*maps[:-1], *([maps[-1]] if tail.neuron else [])]
    pooling = [taken for block, taken in takers if block.pool] + ([maps[-1]] if tail.pool else [])
    patches = [(3 if block.pool else 1) * words(_TAPS * block.in_channels) for block in description.blocks]
    return {
        "STREAM": max(one.at + one.size + one.step * (steps - 1) for one in maps),
        "MEMBRANE": max(one.size for one in firing) if steps > 1 else 1,
        "SPIKES": max(one.pixels * words(one.channels) for one in firing),
        "POOLED": max([1] + [3 * one.pooled(2).pixels * words(one.channels) for one in pooling]),
        "PATCH": max(patches) + 1,
        "RESULTS": max(one.size for one in maps[1:]),
        "CHANNELS": max(one.channels for one in maps),
        "WINDOW": description.stem.kernel**2 * description.input.channels,
        "FEATURES": description.features,
        "CLASSES": description.num_classes,
    }


def _check(description: Description, found: Plan) -> None:
    sums = [
        _TAPS * block.in_channels * (POOLED if block.pool else 1) * out.pixels
        for block, out in zip(description.blocks, found.maps[1:], strict=True)
    ]
    if found.ram_bytes > _MOST or max(sums) > _MOST:
        raise ValueError(
            f"{description.name} needs {found.ram_bytes:,} bytes of memory and counts up to {max(sums):,}; as C it may "
            f"have {_MOST:,} of either. Train it for smaller inputs, or use the packed file."
        )
