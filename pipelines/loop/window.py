"""What is summed between two progress reports."""

import time


class Window:
    """Sums over the steps since the last report, and the seconds that they took; it may span epochs."""

    def __init__(self) -> None:
        self.loss = self.correct = self.images = self.seconds = 0.0
        self.restart()

    def restart(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock: something other than training comes."""
        self.seconds += time.perf_counter() - self._started
        self.restart()

    def add(self, result: dict[str, float], images: int) -> None:
        """Count a step."""
        self.loss += result["loss"] * images
        self.correct += result["correct"]
        self.images += images
