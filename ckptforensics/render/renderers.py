"""The table of renderers: which function shows a kind of document in a format.

Nothing heavy is imported here: the command line takes its lists of formats from this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptforensics.errors import UsageError
from ckptforensics.render.view import Part, View

if TYPE_CHECKING:
    from ckptforensics.results import Document, SignatureDocument

    # A document in, text ending in a newline out.
    Renderer = Callable[[Any, View], str]


# (kind, format) to module and function, which are imported when they are used. The formats of a
# kind stand in the order in which they are listed to users.
_RENDERERS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("signature", "table"): "tables.signature:signature_table",
        ("signature", "json"): "document_json:document_json",
        ("layers", "table"): "tables.layers:layers_table",
        ("layers", "json"): "document_json:document_json",
        ("layers", "csv"): "layers_csv:layers_csv",
        ("layers", "html"): "html.result:result_html",
        ("norms", "table"): "tables.norms:norms_table",
        ("norms", "json"): "document_json:document_json",
        ("norms", "csv"): "layers_csv:norms_csv",
        ("norms", "html"): "html.result:result_html",
        ("inspect", "table"): "tables.inspection:inspection_table",
        ("inspect", "json"): "document_json:document_json",
        ("families", "table"): "tables.families:families_table",
        ("families", "json"): "document_json:document_json",
        ("cache", "table"): "tables.cache:cache_table",
        ("cache", "json"): "document_json:document_json",
        ("catalog", "table"): "tables.catalog:catalog_table",
        ("catalog", "json"): "document_json:document_json",
        ("sketch", "table"): "tables.found:sketch_table",
        ("sketch", "json"): "document_json:document_json",
        ("find", "table"): "tables.found:find_table",
        ("find", "json"): "document_json:document_json",
        ("comparison", "table"): "tables.comparison:comparison_table",
        ("comparison", "json"): "document_json:document_json",
        ("comparison", "csv"): "comparison_csv:comparison_csv",
        ("comparison", "html"): "html.page:comparison_html",
        ("evolution", "table"): "tables.evolution:evolution_table",
        ("evolution", "json"): "document_json:document_json",
        ("evolution", "csv"): "evolution_csv:evolution_csv",
        ("evolution", "html"): "html.result:result_html",
        ("trace", "table"): "tables.running:trace_table",
        ("trace", "json"): "document_json:document_json",
        ("trace", "csv"): "running_csv:trace_csv",
        ("trace", "html"): "html.result:result_html",
        ("empirical", "table"): "tables.running:empirical_table",
        ("empirical", "json"): "document_json:document_json",
        ("empirical", "csv"): "running_csv:empirical_csv",
        ("empirical", "html"): "html.result:result_html",
        ("sinks", "table"): "tables.running:sinks_table",
        ("sinks", "json"): "document_json:document_json",
        ("sinks", "csv"): "running_csv:sinks_csv",
        ("sinks", "html"): "html.result:result_html",
        ("ablation", "table"): "tables.running:ablation_table",
        ("ablation", "json"): "document_json:document_json",
        ("ablation", "csv"): "running_csv:ablation_csv",
        ("ablation", "html"): "html.result:result_html",
        ("paths", "table"): "tables.running:paths_table",
        ("paths", "json"): "document_json:document_json",
        ("paths", "csv"): "running_csv:paths_csv",
        ("paths", "html"): "html.result:result_html",
        ("replication", "table"): "tables.replication:replication_table",
        ("replication", "json"): "document_json:document_json",
        ("replication", "csv"): "running_csv:replication_csv",
        ("replication", "html"): "html.result:replication_html",
        ("report", "table"): "tables.report:report_table",
        ("report", "json"): "document_json:document_json",
        ("report", "html"): "html.result:report_html",
        ("quantization", "table"): "tables.quantized:quantization_table",
        ("quantization", "json"): "document_json:document_json",
        ("quantization", "csv"): "running_csv:quantization_csv",
        ("quantization", "html"): "html.result:result_html",
        ("quantization-plan", "table"): "tables.quantization:plan_table",
        ("quantization-plan", "json"): "document_json:document_json",
        ("quantization-plan", "csv"): "quantization_csv:plan_csv",
        ("quantization-diff", "table"): "tables.quantization:diff_table",
        ("quantization-diff", "json"): "document_json:document_json",
        ("quantization-diff", "csv"): "quantization_csv:diff_csv",
        ("toy", "table"): "tables.toy:toy_table",
        ("toy", "json"): "document_json:document_json",
        ("toy", "csv"): "toy_csv:toy_csv",
        ("audit", "table"): "audit.table:audit_table",
        ("audit", "json"): "document_json:document_json",
        ("audit", "jsonl"): "audit.lines:audit_jsonl",
        ("audit", "csv"): "audit.csv:audit_csv",
        ("audit", "markdown"): "audit.markdown:audit_markdown",
        ("audit", "sarif"): "audit.sarif:audit_sarif",
        ("audit", "cyclonedx"): "audit.cyclonedx:audit_cyclonedx",
        ("audit", "intoto"): "audit.intoto:audit_intoto",
        ("audit", "html"): "audit.page:audit_html",
    }
)
# All that any kind has.
FORMATS = tuple(dict.fromkeys(form for _, form in _RENDERERS))


def formats_of(kind: str) -> tuple[str, ...]:
    """The formats of a kind of document; empty for a kind that is not known."""
    return tuple(form for known, form in _RENDERERS if known == kind)


def render(
    document: Document,
    form: str = "table",
    *,
    verbose: bool = False,
    width: int | None = None,
    color: bool = False,
) -> str:
    """The document as text ending in a newline.

    Parameters
    ----------
    form : one of `formats_of` the document's kind
    verbose, width, color : as in `View`

    Raises
    ------
    UsageError
        if its kind has no such format.
    """
    return _renderer(document.kind, form)(document, View(verbose, width, color))


def table_parts(document: Document) -> list[Part]:
    """What the document's whole table for people is made of, for another form of it."""
    parts: list[Part] = []
    _renderer(document.kind, "table")(document, View(verbose=True, parts=parts))
    return parts


def render_several(
    documents: Iterable[SignatureDocument], *, width: int | None = None, color: bool = False
) -> str:
    """Signatures of several models as a table, a row each; `width` and `color` as in `View`."""
    from ckptforensics.render.tables.signature import signatures_table

    return signatures_table(documents, View(width=width, color=color))


def _renderer(kind: str, form: str) -> Renderer:
    home = _RENDERERS.get((kind, form))
    if home is None:
        known = ", ".join(formats_of(kind)) or "none"
        raise UsageError(f"a {kind} document has no format '{form}'", hint=f"it has: {known}")
    module, function = home.split(":")
    found: Renderer = getattr(import_module(f"ckptforensics.render.{module}"), function)
    return found
