"""The progress bar: drawn for people at a terminal, never into a file or a pipe."""

from __future__ import annotations

import io

from conftest import Terminal

from vecdb_client.progress import Progress


def drawn(bar: Progress, *steps: tuple[int, float | None]) -> None:
    """Draws `steps` of (rows done, share) as if ten seconds had passed."""
    bar._started_s -= 10
    for done, share in steps:
        bar.show(done, share)
    bar.close()


def test_the_bar_is_drawn_on_a_terminal_only() -> None:
    """Rows, rate, share and time left on a terminal; not one byte into a file or a pipe."""
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        drawn(Progress("into docs", 1_000, stream), (500, None))
    assert file.getvalue() == ""
    for part in ("50%", "500 rows", "50 rows/s", "0:10 left"):
        assert part in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_the_last_step_is_drawn_however_soon_it_comes() -> None:
    """Steps in quick succession are passed over, but for the one that completes the total."""
    terminal = Terminal()
    drawn(Progress("into docs", 10, terminal), (1, None), (2, None), (10, None))
    assert "10%" in terminal.getvalue()
    assert "20%" not in terminal.getvalue()
    assert "100%  into docs 10 rows" in terminal.getvalue()


def test_an_unknown_total_shows_what_is_known() -> None:
    """Without a total there are rows and rate; a share that is told makes it a bar."""
    without, told = Terminal(), Terminal()
    drawn(Progress("into docs", stream=without), (500, None))
    assert "into docs 500 rows  50 rows/s" in without.getvalue()
    assert "%" not in without.getvalue()
    drawn(Progress("into docs", stream=told), (500, 0.25))
    assert "25%" in told.getvalue()
    assert "0:30 left" in told.getvalue()
