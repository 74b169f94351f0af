"""The result of `cache`."""

from __future__ import annotations

from typing import Literal

from ckptforensics.results.records import Document, Name


class CacheDocument(Document):
    """The result of `cache`: the signatures kept at `path`, null where nothing is kept.

    `unfinished` counts interrupted runs that can go on; `bytes` is what all files take.
    """

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["cache"] = "cache"
    path: Name | None
    entries: int
    unfinished: int
    bytes: int
    most_entries: int
    most_bytes: int
