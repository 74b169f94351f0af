"""A report for people: the tables of the documents that it holds."""

from __future__ import annotations

from ckptforensics.errors import one_line
from ckptforensics.render.tables.layers import layers_table
from ckptforensics.render.tables.norms import norms_table
from ckptforensics.render.tables.running import empirical_table, trace_table
from ckptforensics.render.tables.signature import signature_table
from ckptforensics.render.view import View
from ckptforensics.results.report import ReportDocument


def report_table(document: ReportDocument, view: View) -> str:
    """The tables of all its documents, each below its kind."""
    tables = {
        "signature": signature_table(document.signature, view),
        "layers": layers_table(document.layers, view),
        "norms": norms_table(document.norms, view),
    }
    if document.trace is not None:
        tables["trace"] = trace_table(document.trace, view)
    if document.empirical is not None:
        tables["empirical"] = empirical_table(document.empirical, view)
    texts = [f"# {kind}\n{table}" for kind, table in tables.items()]
    texts += [f"skipped: {row.what}: {one_line(row.reason)}\n" for row in document.skipped]
    return "\n".join(texts)
