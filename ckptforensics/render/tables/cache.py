"""The cache of signatures for people."""

from __future__ import annotations

from ckptforensics.render.tables.console import fact, make_console, text_of
from ckptforensics.render.view import View
from ckptforensics.results import CacheDocument


def cache_table(document: CacheDocument, view: View) -> str:
    """Where the cache is and what it holds."""
    console = make_console(view)
    where = "nothing is kept: CKPT_CACHE is empty" if document.path is None else document.path
    fact(console, "signatures", where)
    fact(console, "entries", f"{document.entries:,} of at most {document.most_entries:,}")
    fact(console, "unfinished", f"{document.unfinished:,}")
    fact(console, "bytes", f"{document.bytes:,} of at most {document.most_bytes:,}")
    return text_of(console)
