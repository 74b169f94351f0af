"""Layers that are not analysed, or not whole, as rows of a result."""

from __future__ import annotations

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
        Skipped(what=f"{part}layer{'s' if len(layers) > 1 else ''} {_runs(layers)}", reason=reason)
        for (part, reason), layers in groups.items()
    )


def _runs(numbers: list[int]) -> str:
    """Increasing numbers in words: 1 to 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs)
