"""What a running model showed, as comma-separated values: one long table a document."""

from __future__ import annotations

from collections.abc import Iterator

from ckptforensics.render.csv_text import csv_text
from ckptforensics.render.view import View
from ckptforensics.results.ablation import AblationDocument
from ckptforensics.results.empirical import EmpiricalDocument
from ckptforensics.results.paths import PathsDocument
from ckptforensics.results.quantization import QuantizationDocument
from ckptforensics.results.replication import ReplicationDocument
from ckptforensics.results.sinks import SinksDocument
from ckptforensics.results.trace import TraceDocument

TRACE_COLUMNS = ("layer", "position", "token", "text", "norm", "attention", "ffn", "predicted")
EMPIRICAL_COLUMNS = ("first_layer", "last_layer", "token", "text", "position", "count", "pattern")
SINKS_COLUMNS = (
    *("text", "layer", "share", "value_sink", "value_others"),
    *("residual_sink", "residual_others"),
)
ABLATION_COLUMNS = ("what", "of", "layers", "detail", "perplexity", "tokens", "layer", "norm")
REPLICATION_COLUMNS = ("name", "figure", "published", "measured", "tolerance", "passed")
QUANTIZATION_COLUMNS = (
    *("row", "seed", "alpha", "kept", "kept_share", "perplexity", "tokens", "bytes"),
    *("module", "initial", "ordinary"),
)
PATHS_COLUMNS = ("path", "layer", "minimum", "median", "maximum")


def trace_csv(document: TraceDocument, view: View) -> str:
    """A row a layer and token with the columns `TRACE_COLUMNS`; layer 0 is the embedding."""
    return csv_text(TRACE_COLUMNS, _trace(document))


def empirical_csv(document: EmpiricalDocument, view: View) -> str:
    """A row a plateau, token and position with the columns `EMPIRICAL_COLUMNS`."""
    rows = (
        (*plateau.layers, row.token, row.text, row.position, row.count, row.pattern)
        for plateau in document.plateaus
        for row in plateau.tokens
    )
    return csv_text(EMPIRICAL_COLUMNS, rows)


def sinks_csv(document: SinksDocument, view: View) -> str:
    """A row a text and layer with the columns `SINKS_COLUMNS`."""
    texts = [(document.text, document.layers)]
    if document.other is not None:
        texts.append((document.other, document.other_layers))
    rows = (
        (text.source, row.layer, row.share, *(row.value_norm or (None, None)), *row.residual_norm)
        for text, layers in texts
        for row in layers
    )
    return csv_text(SINKS_COLUMNS, rows)


def ablation_csv(document: AblationDocument, view: View) -> str:
    """A row for each row of the document and layer with the columns `ABLATION_COLUMNS`."""
    rows = (
        (
            *(row.what, row.of, " ".join(map(str, row.layers)), row.detail),
            *(row.perplexity, row.tokens, layer, norm),
        )
        for row in document.rows
        for layer, norm in enumerate(row.norms)
    )
    return csv_text(ABLATION_COLUMNS, rows)


def paths_csv(document: PathsDocument, view: View) -> str:
    """A row a kind of path and layer with the columns `PATHS_COLUMNS`."""
    kinds = (
        ("noninitial", document.noninitial),
        ("initial", document.initial),
        ("random", document.random),
    )
    rows = (
        (name, layer, *values)
        for name, record in kinds
        for layer, values in enumerate(
            zip(record.minimum, record.median, record.maximum, strict=True)
        )
    )
    return csv_text(PATHS_COLUMNS, rows)


def replication_csv(document: ReplicationDocument, view: View) -> str:
    """A row a figure with the columns `REPLICATION_COLUMNS`."""
    rows = (
        (
            *(document.name, row.what, " ".join(f"{x:g}" for x in row.published)),
            *(" ".join(f"{x:g}" for x in row.measured), row.tolerance, row.passed),
        )
        for row in document.figures
    )
    return csv_text(REPLICATION_COLUMNS, rows)


def quantization_csv(document: QuantizationDocument, view: View) -> str:
    """A row for each row of the document and module with the columns `QUANTIZATION_COLUMNS`.

    A row without errors of modules is one, with the last columns empty.
    """
    rows: Iterator[tuple[object, ...]] = (
        (
            *(row.row, row.seed, row.alpha, " ".join(row.kept), row.kept_share),
            *(row.perplexity, row.tokens, row.bytes),
            *((None, None, None) if e is None else (e.module, e.initial, e.ordinary)),
        )
        for row in document.rows
        for e in row.module_error or (None,)
    )
    return csv_text(QUANTIZATION_COLUMNS, rows)


def _trace(document: TraceDocument) -> Iterator[tuple[object, ...]]:
    attention, ffn, predicted = document.attention, document.ffn, document.predicted
    for position, (token, text) in enumerate(zip(document.token_ids, document.tokens, strict=True)):
        for layer, norm in enumerate(document.norms[position]):
            yield (
                *(layer, position, token, text, norm),
                attention[position][layer - 1] if layer and attention else None,
                ffn[position][layer - 1] if layer and ffn else None,
                predicted[layer] if predicted and position == 0 else None,
            )
