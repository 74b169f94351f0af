"""Norms of single tokens as a table for people."""

from __future__ import annotations

from ckptforensics.quantities import number
from ckptforensics.render.tables.console import fact, make_console, make_table, print_table, text_of
from ckptforensics.render.tables.facts import heading, skipped
from ckptforensics.render.view import View
from ckptforensics.results import NormsDocument

_TOKENS_SHOWN = 8


def norms_table(document: NormsDocument, view: View) -> str:
    """A row a layer: norms of the first tokens, and median and range over all of them."""
    console = make_console(view)
    heading(console, document.model)
    count = len(document.tokens)
    fact(console, "single tokens", f"{count:,}" + ("" if document.attention else ", no attention"))
    shown = min(count, _TOKENS_SHOWN if view.verbose else 1)
    names = [_token_name(t) for t in document.tokens[:shown]]
    table = make_table("layer", *names, "median", "minimum", "maximum")
    for stage in document.stages:
        table.add_row(
            "embedding" if stage.layer is None else str(stage.layer),
            *[number(n) for n in stage.norms[:shown]],
            number(stage.median),
            number(stage.minimum),
            number(stage.maximum),
        )
    print_table(console, table)
    skipped(console, document.skipped)
    return text_of(console)


def _token_name(token: int | None) -> str:
    return "random vector" if token is None else f"token {token}"
