"""The live view of long work on a terminal, and quiet lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from growpipe import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 140 columns is sent."""
    sent = io.StringIO()
    made = Console(file=sent, force_terminal=True, width=140, height=40, color_system=None)
    monkeypatch.setattr(progress, "console", lambda: made)
    return sent


def drawn() -> str:
    """What the view shows now."""
    assert progress._view is not None
    apart = io.StringIO()
    Console(file=apart, width=140).print(progress._view)
    return apart.getvalue()


def test_one_view_shows_round_epochs_losses_time_and_memory(terminal: io.StringIO) -> None:
    with progress.live_view("growpipe run of digits"):
        progress.show_round(2, 4)
        with progress.activity("round-02/train"), progress.progress_bar("round-02/train", 5) as advance:
            advance("rate 0.01, loss 0.5")
            advance("rate 0.01, loss 0.25")
            shown = drawn()
            assert "growpipe run of digits · round 2 of at most 4 · memory" in shown
            assert "MiB at most" in shown
            assert shown.count("round-02/train") == 1, "a stage has one line"
            assert "2/5" in shown
            assert "left" in shown
            assert "loss 0.25" in shown
        progress.log("round-02/train: done")
        assert "round-02/train: done" in terminal.getvalue()
        with progress.activity("round-02/analyse"):
            assert "round-02/analyse" in drawn()
        assert "round-02" not in drawn()
    assert progress._view is None


def test_a_bar_by_itself_is_a_view_too(terminal: io.StringIO) -> None:
    with progress.progress_bar("training", 3) as advance:
        advance("loss 1")
        assert "1/3" in drawn()
    assert progress._view is None


def test_an_error_ends_the_view(terminal: io.StringIO) -> None:
    with pytest.raises(RuntimeError), progress.live_view("run"), progress.progress_bar("stage", 3):
        raise RuntimeError
    assert progress._view is None
    assert "\x1b[?25h" in terminal.getvalue(), "the cursor is shown again"


def test_names_cannot_draw(terminal: io.StringIO) -> None:
    with progress.live_view("evil \x1b[2J"), progress.activity("[bold]x\x1b[31m"):
        shown = drawn()
    assert "[bold]x" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[31m" not in shown


def test_lines_alone_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = io.StringIO()
    plain = Console(file=sent, force_terminal=False, width=140)
    monkeypatch.setattr(progress, "console", lambda: plain)
    with progress.live_view("run"), progress.activity("stage"), progress.progress_bar("stage", 2) as advance:
        progress.show_round(0, 1)
        advance("loss 1")
        progress.log("stage: done")
    assert sent.getvalue() == "stage: done\n"
