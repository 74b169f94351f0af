"""How much memory the machine has."""

from __future__ import annotations

import os


def machine_memory() -> int | None:
    """Bytes of the machine's memory; None where nobody says."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
