"""URLs that fsspec reads."""

from __future__ import annotations

from collections.abc import Callable

from ckptforensics.errors import UsageError
from ckptforensics.registry.found import Listing


def list_url(
    url: str, *, offline: bool = False, tell: Callable[[str], None] | None = None
) -> Listing:
    """The models below a URL."""
    raise UsageError("URLs are not listed", path=url)
