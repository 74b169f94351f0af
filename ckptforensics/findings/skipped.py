"""Layers that are not analysed, or not whole, as rows of a result."""

from __future__ import annotations

from collections.abc import Sequence

from ckptforensics.architectures import Architecture
from ckptforensics.results import Skipped


def skipped_layers(architecture: Architecture) -> tuple[Skipped, ...]:
    """One row for each reason, naming the layers it holds for."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, plan in enumerate(architecture.layers, 1):
        if plan.skipped is not None:
            groups.setdefault(("", plan.skipped), []).append(number)
        elif plan.mixer is not None:
            groups.setdefault(("all but the FFN of ", plan.mixer), []).append(number)
    return tuple(
        Skipped(what=f"{part}layer{'s' if len(layers) > 1 else ''} {runs(layers)}", reason=reason)
        for (part, reason), layers in groups.items()
    )


def runs(numbers: Sequence[int]) -> str:
    """Increasing numbers in words: 1 to 3, 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in found)
