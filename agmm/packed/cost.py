"""What one inference of a packed network multiplies, by its description; spikes are counted when it runs."""

from agmm.packed.description import Block, Description


def mac_count(description: Description, height: int, width: int) -> int:
    """Multiplications with additions for one input of that size: stem, projections, gates, head.

    As `agmm.metrics.operations` counts them (zero padding is none, an affine folds, a gate is one an element), but for
    the head: it runs once, on the mean over T, where a network in training runs it at every step.
    """
    stem, steps = description.stem, description.time_steps
    applications = steps if description.input.frames else 1
    reached = _windows(height, stem.kernel, stem.stride) * _windows(width, stem.kernel, stem.stride)
    total = applications * reached * description.input.channels * stem.channels
    height, width = _strided(height, stem.stride), _strided(width, stem.stride)
    if stem.max_pool:
        height, width = _strided(height, 2), _strided(width, 2)
    for block in description.blocks:
        shrink = block.stride * (2 if block.pool else 1)
        height, width = _strided(height, shrink), _strided(width, shrink)
        total += steps * height * width * block.out_channels * _per_output(block)
    return total + description.features * description.num_classes


def _per_output(block: Block) -> int:
    projected = block.in_channels if block.shortcut == "projection" else 0
    return projected + (block.gate != "none")


def _strided(size: int, stride: int) -> int:
    return -(-size // stride)


def _windows(size: int, kernel: int, stride: int) -> int:
    """Pairs of an output and an input along one axis, padding of kernel // 2 not counted."""
    half = kernel // 2
    return sum(min(at + half, size - 1) - max(at - half, 0) + 1 for at in range(0, size, stride))
