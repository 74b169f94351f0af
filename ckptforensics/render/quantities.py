"""How numbers, angles, sizes and times are written for people."""

from __future__ import annotations


def number(value: float) -> str:
    """A number as tables show it: four digits, or whole from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def angle(value: float | None) -> str:
    """An angle in degrees, a dash where there is none."""
    if value is None:
        return "-"
    if 0 < value < 0.005:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def size(count: int) -> str:
    """A number of bytes, in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} GB"


def duration(seconds: float) -> str:
    """A time in seconds, to a hundredth where it is short."""
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:,.0f} s"
