"""How numbers, angles, sizes and times are written for people: one way in all of the program."""

from __future__ import annotations

_BILLION = 1e9


def number(value: float, *, signed: bool = False) -> str:
    """A number as tables show it: four digits, or whole from a thousand on; no zero has a sign.

    From a billion on it is a power of ten.
    """
    value = value or 0.0  # not -0
    sign = "+" if signed else ""
    whole = 1000 <= abs(value) < _BILLION
    return f"{value:{sign},.0f}" if whole else f"{value:{sign}.4g}"


def percent(share: float, digits: int = 0) -> str:
    """A share in per cent; what rounds to zero has no sign."""
    text = f"{share:.{digits}%}"
    return text if text.strip("-0.%") else text.removeprefix("-")


def error_size(value: float) -> str:
    """The size of a small error, to one digit; 0 where there is none."""
    return f"{value:.0e}" if value else "0"


def counted(count: int, what: str) -> str:
    """A number of things, whose name has its plural in s."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


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
