"""The figure of a step's time, by hand."""

from pipelines.loop.window import PHASES
from pipelines.report import figures


def test_phases_are_stacked_and_their_shares_add_up_to_one(tmp_path):
    seconds = {"load": (0.1, 0.3), "forward": (0.4, 0.4), "backward": (0.6, 0.6)}
    history = {f"time/{name}": list(zip((20, 40), seconds.get(name, (0.0, 0.0)), strict=True)) for name in PHASES}
    figure = figures.phases(history)
    areas, shares = figure.axes
    assert len(areas.collections) == len(PHASES)
    assert areas.collections[2].get_paths()[0].get_extents().ymax == 0.3 + 0.4 + 0.6
    assert [round(bar.get_width(), 3) for bar in shares.patches[:4]] == [0.167, 0.333, 0.5, 0.0]
    assert [label.get_text() for label in shares.get_yticklabels()] == list(PHASES)
    figure.savefig(tmp_path / "phases.png")
