"""Sizes of memory: as people write them, and what a job gets by default."""

from __future__ import annotations

from ckptforensics.compute.memory import machine_memory

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def memory_size(text: str) -> int:
    """Bytes from what the user wrote, `8GB`, `500MB` or `2GiB`; ValueError if it is no size."""
    number = text.strip().rstrip("BGIKMbgikm")
    unit = text.strip()[len(number) :].upper() or "B"
    try:
        size = int(float(number) * _UNITS[unit if unit.endswith("B") else unit + "B"])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size <= 0:
        raise ValueError(f"{text!r} is no size such as 8GB or 500MB")
    return size


def default_memory() -> int:
    """Half of the machine's memory, where it is known, else 8 GB."""
    memory = machine_memory()
    return 8 * 10**9 if memory is None else memory // 2
