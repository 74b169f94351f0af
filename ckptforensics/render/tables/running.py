"""What a running model showed, as tables for people: trace, empirical, sinks, ablation, paths."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted, error_size, number, percent
from ckptforensics.render.tables.console import (
    fact,
    make_console,
    make_table,
    print_table,
    say,
    text_of,
)
from ckptforensics.render.tables.facts import coordinates, heading, skipped
from ckptforensics.render.view import View
from ckptforensics.results.ablation import AblationDocument
from ckptforensics.results.empirical import EmpiricalDocument, Plateau
from ckptforensics.results.paths import CoefficientRecord, PathsDocument
from ckptforensics.results.running import RunningRecord, TextRecord
from ckptforensics.results.sinks import SinksDocument
from ckptforensics.results.trace import TraceDocument

_TOKENS_SHOWN, _NAMES_SHOWN, _HEADS_SHOWN = 6, 8, 5


def trace_table(document: TraceDocument, view: View) -> str:
    """A row a layer: the first token's norm, its prediction, and the norms of the next tokens."""
    console = make_console(view)
    heading(console, document.model)
    ran(console, document.running, document.text)
    count = len(document.token_ids)
    shown = count if view.verbose else min(count, _TOKENS_SHOWN)
    names = [
        token_name(t, text)
        for t, text in zip(document.token_ids[:shown], document.tokens[:shown], strict=True)
    ]
    if document.prediction_error is not None:
        error = error_size(document.prediction_error)
        fact(console, "prediction", f"by the weights alone, off by {error} of the norm at most")
    predicted = ["predicted"] if document.predicted is not None else []
    table = make_table("layer", *predicted, *(f"{i}: {n}" for i, n in enumerate(names)))
    for layer in range(document.model.num_layers + 1):
        row = [] if document.predicted is None else [number(document.predicted[layer])]
        row += [number(document.norms[token][layer]) for token in range(shown)]
        table.add_row("embedding" if layer == 0 else str(layer), *row)
    print_table(console, table)
    if shown < count:
        say(console, f"({counted(count - shown, 'more token')} with -v, and in JSON)")
    skipped(console, document.skipped)
    return text_of(console)


def empirical_table(document: EmpiricalDocument, view: View) -> str:
    """Each plateau of layers and its tokens; every layer's populations where verbose."""
    console = make_console(view)
    heading(console, document.model)
    ran(console, document.running, document.text)
    given = "the gap between two populations of norms, layer by layer"
    fact(
        console,
        "threshold",
        given if document.threshold is None else f"{number(document.threshold)}, as given",
    )
    if not document.plateaus:
        fact(console, "high norm", "none: no tokens stand out in two layers or more", "yellow")
    for plateau in document.plateaus:
        _plateau(console, plateau)
    if view.verbose:
        table = make_table("layer", "median", "ordinary to", "high from", "threshold", "tokens")
        for row in document.layers:
            values = (row.ordinary, row.high, row.threshold)
            cells = ["-" if value is None else number(value) for value in values]
            table.add_row(str(row.layer), number(row.median), *cells, str(row.count))
        console.print()
        print_table(console, table)
    skipped(console, document.skipped)
    return text_of(console)


def _plateau(console: Console, plateau: Plateau) -> None:
    first, last = plateau.layers
    console.print()
    say(
        console,
        f"layers {first} to {last}: {counted(plateau.count, 'token')} over "
        f"{number(plateau.threshold)}, with norm {number(plateau.median_norm)}",
        style="red",
    )
    fact(console, "  direction", coordinates(plateau.direction_top))
    if plateau.pairwise_angle_deg is not None:
        fact(
            console, "  angle", f"{plateau.pairwise_angle_deg:.2f} degrees between two, in the mean"
        )
    fact(
        console,
        "  initial",
        f"{percent(plateau.initial_share)} of them; "
        f"{percent(plateau.initial_found)} of the windows' first tokens are among them",
    )
    massive = [
        f"{row.coordinate} ({number(row.mean, signed=True)})" for row in plateau.massive
    ] or ["none"]
    fact(console, "  massive", ", ".join(massive[:_NAMES_SHOWN]))
    names = [
        f"{token_name(row.token, row.text)} at {row.position}"
        + (f" x{row.count}" if row.count > 1 else "")
        + ("" if row.pattern == "initial" else f" ({row.pattern})")
        for row in plateau.tokens
    ]
    more = len(names) - _NAMES_SHOWN
    fact(
        console,
        "  tokens",
        ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else ""),
    )


def sinks_table(document: SinksDocument, view: View) -> str:
    """A row a layer: share of heads with a sink, and norms of the first token and the others."""
    console = make_console(view)
    heading(console, document.model)
    ran(console, document.running, document.text)
    fact(
        console,
        "sinks",
        f"{percent(document.share)} of heads give token {document.k} more than "
        f"{document.threshold:g} of their attention, over all windows and layers",
    )
    if document.other is not None and document.other_share is not None:
        fact(console, "other text", f"{document.other.source}: {percent(document.other_share)}")
    named = f"token {document.k}"
    table = make_table("layer", "heads", f"value {named}", "others", f"stream {named}", "others ")
    for row in document.layers:
        value = ("-", "-") if row.value_norm is None else map(number, row.value_norm)
        table.add_row(str(row.layer), percent(row.share), *value, *map(number, row.residual_norm))
    print_table(console, table)
    if document.switching:
        shown = document.switching if view.verbose else document.switching[:_HEADS_SHOWN]
        table = make_table("layer", "head", "this text", "other text")
        for head in shown:
            table.add_row(str(head.layer), str(head.head), *map(percent, head.shares))
        console.print()
        say(console, "heads that differ most between the texts")
        print_table(console, table)
    skipped(console, document.skipped)
    return text_of(console)


def ablation_table(document: AblationDocument, view: View) -> str:
    """A row for the model as it is, one for each thing taken away, and one for its control."""
    console = make_console(view)
    heading(console, document.model)
    ran(console, document.running, document.text)
    table = make_table("row", "layers", "perplexity", "highest norm", "last norm", "detail:")
    for row in document.rows:
        name = row.what if row.of is None else f"{row.what} of {row.of}"
        table.add_row(
            name,
            ", ".join(map(str, row.layers)),
            number(row.perplexity),
            number(max(row.norms)),
            number(row.norms[-1]),
            one_line(row.detail),
        )
    print_table(console, table, least=("detail:",))
    if view.verbose and document.prompt is not None:
        console.print()
        say(console, f"what the model goes on with behind '{one_line(document.prompt)}'")
        for row in document.rows:
            text = one_line(row.continuation or "")
            say(console, f"{row.what} {', '.join(map(str, row.layers))}: {text}")
    skipped(console, document.skipped)
    return text_of(console)


def paths_table(document: PathsDocument, view: View) -> str:
    """A row a layer: norms of tokens without and with attention, and of random vectors."""
    console = make_console(view)
    heading(console, document.model)
    kinds = {
        "no attention": document.noninitial,
        "initial": document.initial,
        "random": document.random,
    }
    for name, record in kinds.items():
        names = [
            f"{token_name(t.token, t.text)} {number(t.norm)} (layer {t.layer})"
            for t in record.highest
            if t.token is not None
        ]
        told = f"{record.count:,} paths" + (f"; highest: {', '.join(names)}" if names else "")
        fact(console, name, told)
    if document.trigger_layer is not None:
        fact(console, "trigger", f"of layer {document.trigger_layer}, an explosion layer")
    for row in document.coefficients:
        _coefficients(console, row)
    answers = {row.layer: row for row in document.answers}
    columns = [f"{part} {name}" for name in kinds for part in ("median", "maximum")]
    table = make_table("layer", *columns, "FFN of v1")
    for layer in range(document.model.num_layers + 1):
        cells = [
            number(values[layer])
            for record in kinds.values()
            for values in (record.median, record.maximum)
        ]
        answer = number(answers[layer].norms[0]) if layer in answers else ""
        table.add_row("embedding" if layer == 0 else str(layer), *cells, answer)
    print_table(console, table)
    skipped(console, document.skipped)
    return text_of(console)


def _coefficients(console: Console, row: CoefficientRecord) -> None:
    low, _, middle, _, high = row.quantiles
    strongest = ", ".join(token_name(t.token, t.text) for t, _ in row.highest)
    fact(
        console,
        f"  position {row.position}",
        f"coefficients {low:.3g} to {high:.3g}, median {middle:.3g}, of {row.count:,} tokens; "
        f"largest: {strongest}",
    )


def token_name(token: int | None, text: str | None) -> str:
    """A token as readers know it: its text between quotes, else its number."""
    if token is None:
        return "random vector"
    return f"token {token}" if text is None else f"'{one_line(text)}'"


def ran(console: Console, running: RunningRecord, text: TextRecord) -> None:
    """Print what ran, and on what."""
    fact(
        console,
        "ran",
        f"{running.model_class} in {running.dtype} on {running.device} "
        f"(transformers {running.transformers}, torch {running.torch})",
    )
    windows: Sequence[str] = (
        f"{text.source}: {counted(text.tokens, 'token')}",
        f"in {counted(text.windows, 'window')} of {text.window:,}",
    )
    part = f", a part of {text.available:,}" if text.partial else ""
    fact(console, "text", " ".join(windows) + part + (", each with BOS" if text.bos else ""))
