"""Computations that report their steps, one within another."""

from __future__ import annotations

import pytest

from ckptforensics.progress import running


class Recorded:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def start(self, label: str, total: int) -> None:
        self.told.append(("start", label, total))

    def step(self, note: str = "") -> None:
        self.told.append(("step", note))

    def finish(self) -> None:
        self.told.append(("finish",))


def test_computations_nest_and_end_in_their_order():
    progress = Recorded()
    with running(progress, "outer", 1) as step:
        with running(progress, "inner", 2) as inner:
            inner("a")
            inner("b")
        step("c")
    assert progress.told == [
        ("start", "outer", 1),
        ("start", "inner", 2),
        ("step", "a"),
        ("step", "b"),
        ("finish",),
        ("step", "c"),
        ("finish",),
    ]


def test_one_that_fails_is_finished_too():
    progress = Recorded()
    with (
        pytest.raises(KeyboardInterrupt),
        running(progress, "outer", 1),
        running(progress, "inner", 1),
    ):
        raise KeyboardInterrupt
    assert [what for what, *_ in progress.told] == ["start", "start", "finish", "finish"]


def test_without_progress_nobody_is_told():
    with running(None, "layers", 1) as step:
        step("a")
