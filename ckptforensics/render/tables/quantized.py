"""A model rounded in several ways, as a table for people."""

from __future__ import annotations

from ckptforensics.quantities import counted, number, percent, size
from ckptforensics.render.quantized import Summary, summaries
from ckptforensics.render.tables.console import (
    fact,
    make_console,
    make_table,
    print_table,
    say,
    text_of,
)
from ckptforensics.render.tables.facts import heading, skipped
from ckptforensics.render.tables.quantization import error_share
from ckptforensics.render.tables.running import ran
from ckptforensics.render.view import View
from ckptforensics.results.quantization import PredictionRecord, QuantizationDocument

_PREDICTIONS_SHOWN = 8


def quantization_table(document: QuantizationDocument, view: View) -> str:
    """A row for each way of rounding; then what the weights predicted beside what was measured."""
    console = make_console(view)
    heading(console, document.model)
    ran(console, document.running, document.text)
    if document.calibration is not None:
        text = document.calibration
        apart = "not evaluated" if document.apart else "evaluated too"
        windows = counted(text.windows, "window")
        told = f"{text.source}: {windows} of {text.window:,}, {apart}"
        fact(console, "calibration", told)
    if document.alphas:
        tried = ", ".join(f"{a.alpha:g}: {number(a.perplexity)}" for a in document.alphas)
        fact(console, "alpha", f"perplexity there by alpha: {tried}")
    if document.planned is not None:
        fact(console, "planned", f"by {document.planned}")
    if document.integer:
        fact(console, "products", "of 8-bit codes")
    table = make_table(
        *("row:", "kept", "share", "alpha", "perplexity", "added loss", "taken back", "size")
    )
    for s in summaries(document):
        table.add_row(
            *(s.row, str(s.kept) if s.row != "none" else "all", percent(s.share, 1)),
            *("" if s.alpha is None else f"{s.alpha:g}", perplexity_text(s)),
            *("-" if s.added is None else f"{s.added:+.3f}",),
            *("" if s.taken is None else percent(s.taken), size(s.bytes)),
        )
    print_table(console, table, least=("alpha", "share", "kept", "size", "added loss"))
    if document.predictions:
        console.print()
        say(console, "relative error of modules under rtn: predicted by the weights, measured")
        shown = _shown(document)
        every = document.predictions if view.verbose else shown[:_PREDICTIONS_SHOWN]
        errors = make_table("module:", "initial", "measured", "ordinary", "measured ")
        for p in every:
            pairs = zip(p.predicted, p.measured, strict=True)
            errors.add_row(p.module, *(error_share(value) for pair in pairs for value in pair))
        print_table(console, errors, least=("initial", "measured"))
        if len(every) < len(document.predictions):
            say(console, f"({len(document.predictions) - len(every)} more with -v, and in JSON)")
    skipped(console, document.skipped)
    return text_of(console)


def perplexity_text(summary: Summary) -> str:
    """The perplexity; of several random choices the mean and the range."""
    if summary.lowest == summary.highest:
        return number(summary.perplexity)
    return f"{number(summary.perplexity)} ({number(summary.lowest)} to {number(summary.highest)})"


def _shown(document: QuantizationDocument) -> list[PredictionRecord]:
    """The plan's modules first, as it ranks them."""
    kept = {name for row in document.rows if "planned" in row.row for name in row.kept}
    return sorted(document.predictions, key=lambda p: p.module not in kept)
