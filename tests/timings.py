"""What of a run's figures depends on the clock, and so differs between two that are otherwise the same."""

_OF_THE_CLOCK = ("images_per_second", "mfu", "train/images_per_second", "train/mfu")


def without_timings(row):
    """The others."""
    return {key: value for key, value in row.items() if key not in _OF_THE_CLOCK and not key.startswith("time/")}
