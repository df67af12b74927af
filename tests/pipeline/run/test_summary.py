"""The table that a run ends with: what matters, in 100 columns; all of it in Markdown."""

from __future__ import annotations

import pytest

from growpipe.quality import METRICS
from growpipe.run.facts import FinalFacts
from growpipe.run.summary import RoundRow, print_summary, summary_markdown

WIDTHS = tuple(range(90, 117))
ROWS = [
    RoundRow("round 0", WIDTHS, 123_456_789, 12_345_678_901, 160, 0.98765, 0.0123, 10**16),
    RoundRow(
        "round 12",
        (7, 7, 10, 14),
        123_456_789,
        12_345_678_901,
        160,
        0.98765,
        0.0123,
        10**16,
        latency_ratio=1.234,
        latency_low=1.2,
        latency_high=1.3,
        epsilon=0.5,
        predicted_change=-0.25,
        realised_change=-0.125,
        parity=3e-7,
        gradient_ratio=0.82,
        cost=12.5,
        unit="ms",
    ),
]


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_the_table_fits_100_columns(metric: object, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(ROWS, "growpipe run of mine, seed 0", metric)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    told = " ".join(lines)
    for words in ("123,456,789", " 12.3 G ", "7-7-10-14", "2,781 channels", " 1.23 ", " 12.5 ms "):
        assert words in told, words
    assert "Δloss" not in told


def test_markdown_has_every_column_and_the_direction_of_the_metric() -> None:
    text = summary_markdown(ROWS, "mine", FinalFacts("done", 0.0, "grown", "growth wins"), METRICS["rmse"])
    heading = text.splitlines()[2]
    for words in ("test RMSE (lower is better)", "Δloss predicted", "parity at ε = 0", "validation loss"):
        assert words in heading, words
    assert "| 0.9877 |" in text
    assert "| 12,345,678,901 |" in text
    assert "| 1.23 [1.20, 1.30] |" in text
    assert "| 98.8 % |" in summary_markdown(
        ROWS, "mine", FinalFacts("done", 0.0, "grown", "growth wins"), METRICS["accuracy"]
    )
