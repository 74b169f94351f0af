"""Signatures as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from ckptforensics.errors import one_line
from ckptforensics.quantities import error_size, number
from ckptforensics.render.tables.console import fact, make_console, make_table, print_table, text_of
from ckptforensics.render.tables.facts import (
    coordinates,
    heading,
    layer_facts,
    layer_styles,
    skipped,
)
from ckptforensics.render.view import View
from ckptforensics.results import SignatureDocument


def signature_table(document: SignatureDocument, view: View) -> str:
    """A signature: what was found, and a row a layer."""
    console = make_console(view)
    heading(console, document.model)
    fact(console, "fit", document.fit)
    fact(console, "fingerprint", document.fingerprint or _no_fingerprint(document), "bold")
    layer_facts(console, document)
    table = make_table("layer", "prefix", "s1", "s2", "gap", "residual", "u1: largest coordinates")
    styles = layer_styles(document)
    for row in document.layers:
        table.add_row(
            str(row.layer),
            one_line(row.prefix),
            number(row.sigma[0]),
            number(row.sigma[1]),
            f"{row.gap:.2f}",
            error_size(row.residual),
            coordinates(row.direction_top[: 5 if view.verbose else 3]),
            style=styles.get(row.layer, ""),
        )
    print_table(console, table)
    skipped(console, document.skipped)
    return text_of(console)


def signatures_table(documents: Iterable[SignatureDocument], view: View) -> str:
    """Signatures of several models as a table, a row each."""
    console = make_console(view)
    table = make_table("fingerprint", "explosion", "decay", "model")
    for document in documents:
        explosion, decay = (
            ", ".join(map(str, layers)) or "none found"
            for layers in (document.explosion, document.decay)
        )
        name = one_line(document.model.path)
        table.add_row(document.fingerprint or "none", explosion, decay, name)
    print_table(console, table, least=("decay", "explosion"))
    return text_of(console)


def _no_fingerprint(document: SignatureDocument) -> str:
    idle = document.direction.source == "none"
    return "none: no layer adds anything" if idle else "none: of some layers only"
