"""How progress is shown."""

from __future__ import annotations

import sys

import pytest

from ckptforensics.cli import progress
from ckptforensics.cli.progress import Bar, Lines
from ckptforensics.progress import running


def test_lines_are_of_the_computation_begun_last(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", -1.0)
    shown = Lines()
    with running(shown, "tests", 2) as step:
        step("a")
        with running(shown, "mixture", 5) as inner:
            inner("b")
            shown.transferred(2_500_000)
        step("c")
    shown.transferred(3_000_000)  # nothing runs any more
    assert capsys.readouterr().err.splitlines() == [
        "tests 1 of 2",
        "mixture 1 of 5",
        "mixture 1 of 5, 2.5 MB transferred",
        "tests 2 of 2, 2.5 MB transferred",
    ]


def test_short_work_shows_nothing(capsys):
    for shown in (Bar(), Lines()):
        with running(shown, "layers", 1) as step:
            step("a")
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars from the first step on, on a terminal with colours and cursor."""
    monkeypatch.setattr(progress, "_BAR_AFTER_SECONDS", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_bars_nest(terminal, capsys):
    shown = Bar()

    def rows() -> list[tuple[str, float, object]]:
        bars = shown._bars.tasks
        return [(task.description, task.completed, task.total) for task in bars]

    with running(shown, "tests", 2) as step:
        step("a")
        for _ in range(2):
            with running(shown, "mixture", 5) as inner:
                inner("b")
                inner("b")
                assert rows() == [("tests", 1, 2), ("mixture", 2, 5)]
        assert rows() == [("tests", 1, 2)]
        step("c")
        assert rows() == [("tests", 2, 2)]
    assert shown._bars is None
    assert "tests" in capsys.readouterr().err
    # Another one begins anew.
    with running(shown, "layers", 3) as step:
        step("d")
        assert rows() == [("layers", 1, 3)]


def test_a_bar_ends_with_what_failed(terminal):
    shown = Bar()

    def interrupted() -> None:
        with running(shown, "outer", 1), running(shown, "inner", 1) as step:
            step("a")
            assert len(shown._bars.tasks) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert shown._bars is None
