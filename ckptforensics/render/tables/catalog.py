"""A catalog of models for people."""

from __future__ import annotations

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted, size
from ckptforensics.render.tables.console import fact, make_console, make_table, print_table, text_of
from ckptforensics.render.view import View
from ckptforensics.results.catalog import CatalogDocument


def catalog_table(document: CatalogDocument, view: View) -> str:
    """What the catalog holds, and a row a model where it lists them."""
    console = make_console(view)
    states = _counts(document.states.model_dump())
    findings = _counts(document.findings.model_dump())
    fact(console, "catalog", f"{document.path}, version {document.version}")
    fact(console, "models", states or "none")
    fact(console, "findings", findings or "none")
    fact(console, "pairs", f"{document.relations:,} compared")
    if document.sketches is not None:
        fact(console, "sketches", f"{document.sketches:,} to search with 'ckpt find'")
    fact(console, "runs", f"{document.runs:,}")
    arrays = f"{counted(document.arrays, 'signature')} of {size(document.array_bytes)}"
    fact(console, "size", f"{size(document.bytes)}, and {arrays} beside it")
    if document.models:
        table = make_table("model", "family", "fingerprint")
        for model in document.models:
            read = model.fingerprint or model.state
            table.add_row(one_line(model.name), one_line(model.family or "-"), read)
        print_table(console, table)
    return text_of(console)


def _counts(counts: dict[str, int]) -> str:
    """What there is of each, in words."""
    return ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items() if n)
