"""The supported families as a table for people."""

from __future__ import annotations

from ckptforensics.quantities import counted
from ckptforensics.render.tables.console import make_console, make_table, print_table, text_of
from ckptforensics.render.view import View
from ckptforensics.results import FamiliesDocument


def families_table(document: FamiliesDocument, view: View) -> str:
    """A row a family, with its test cases by name where the view is verbose."""
    console = make_console(view)
    table = make_table("family", "model_type", "GGUF", "verified with " + document.oracle)
    for row in document.families:
        verified = (
            ", ".join(row.verified_by) if view.verbose else counted(len(row.verified_by), "case")
        )
        table.add_row(
            row.name,
            ", ".join(row.model_types),
            ", ".join(row.gguf_architectures),
            verified if row.verified_by else "not verified",
        )
    print_table(console, table)
    return text_of(console)
