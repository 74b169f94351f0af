"""Published figures beside measured ones, for people."""

from __future__ import annotations

from ckptforensics.render.tables.console import fact, make_console, make_table, print_table, text_of
from ckptforensics.render.tables.facts import heading, skipped
from ckptforensics.render.view import View
from ckptforensics.results.replication import ReplicationDocument


def replication_table(document: ReplicationDocument, view: View) -> str:
    """A row a figure: published, measured, tolerance, passed or failed."""
    console = make_console(view)
    heading(console, document.model)
    whose = "recorded by this program" if document.own else "published"
    fact(console, "figures", f"of {document.name}, {whose}")
    if document.text is not None:
        fact(console, "text", f"{document.text.source}: {document.text.tokens:,} tokens")
    table = make_table("figure", "published", "measured", "tolerance", "passed")
    for row in document.figures:
        table.add_row(
            row.what,
            _numbers(row.published),
            _numbers(row.measured),
            "same" if row.tolerance is None else f"{row.tolerance:g}",
            "yes" if row.passed else "NO",
        )
    print_table(console, table)
    skipped(console, document.skipped)
    return text_of(console)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values) or "-"
