"""Explosion and decay layers for people."""

from __future__ import annotations

from rich.console import Console

from ckptforensics.errors import one_line
from ckptforensics.quantities import number, percent
from ckptforensics.render.tables.console import (
    fact,
    make_console,
    make_table,
    print_table,
    say,
    text_of,
)
from ckptforensics.render.tables.facts import (
    coordinates,
    heading,
    layer_facts,
    layer_styles,
    skipped,
)
from ckptforensics.render.view import View
from ckptforensics.results import (
    BeginTokenRecord,
    Eigenvalue,
    LayerEvidence,
    LayersDocument,
    TriggerToken,
)

_SUPER_WEIGHTS_SHOWN = 5
_EXPERTS_SHOWN = 3


def layers_table(document: LayersDocument, view: View) -> str:
    """Each layer with a label and its evidence; every layer where the view is verbose."""
    console = make_console(view)
    heading(console, document.model)
    fact(console, "fit", document.fit)
    layer_facts(console, document)
    if document.begin_token is not None:
        fact(console, "begin token", _begin_token(document.begin_token))
    _labelled(console, document, view.verbose)
    _super_weights(console, document, view.verbose)
    if document.accumulated:
        _accumulated(console, document, view.verbose)
    if document.empirical:
        _empirical(console, document)
    skipped(console, document.skipped)
    return text_of(console)


def _labelled(console: Console, document: LayersDocument, verbose: bool) -> None:
    styles = layer_styles(document)
    for row in document.layers:
        if row.label is None and not verbose:
            continue
        strength = "" if row.strength is None else f", strength {row.strength:.2f}"
        name = row.label or "no label"
        console.print()
        say(
            console,
            f"layer {row.layer} ({one_line(row.prefix)}): {name}{strength}",
            style=styles.get(row.layer, ""),
        )
        for line in _evidence(row, verbose):
            say(console, line, begin="  - ")


def _evidence(row: LayerEvidence, verbose: bool) -> list[str]:
    lines = list(row.evidence)
    if row.response is not None:
        at = f"u: {row.response.direction}, c = {number(row.response.size)}"
        lines.append(
            f"true block at +-c u ({at}): adds {number(row.response.plus, signed=True)} and "
            f"{number(row.response.minus, signed=True)} along u"
        )
    if row.trigger_top:
        lines.append(f"v1 of F, its trigger: {coordinates(row.trigger_top[: 5 if verbose else 3])}")
    if row.trigger_tokens:
        tokens = row.trigger_tokens
        shown = tokens if verbose else (*tokens[:3], *tokens[-2:])
        told = ", ".join(f"{_token(t)} {t.cosine:+.2f}" for t in shown)
        lines.append(f"cosine of token embeddings with v1, blocks before left out: {told}")
    lines.extend(
        f"{expert.name}: mean weight {expert.weight:.3f}, s1 {number(expert.sigma)}, "
        f"answers its trigger with norm {number(expert.trigger_norm)}"
        for expert in row.strongest_experts[: None if verbose else _EXPERTS_SHOWN]
    )
    if row.eigenvalue is not None:
        lines.append(
            f"eigenvalue of R nearest u: {_eigenvalue(row.eigenvalue)} at "
            f"{row.eigenvalue.angle_deg:.1f} degrees"
        )
    return lines


def _token(record: TriggerToken) -> str:
    """A token as a reader can tell it: its text, in which nothing can do harm, or its number."""
    return f"token {record.token}" if record.text is None else f"'{one_line(record.text)}'"


def _super_weights(console: Console, document: LayersDocument, verbose: bool) -> None:
    shown = document.super_weights[: None if verbose else _SUPER_WEIGHTS_SHOWN]
    console.print()
    say(console, "strongest entries of the down projections (super-weight candidates, ranked)")
    table = make_table("layer", "tensor", "row", "column", "value", "amplitude")
    for weight in shown:
        table.add_row(
            str(weight.layer),
            one_line(weight.tensor),
            str(weight.row),
            str(weight.column),
            number(weight.value),
            number(weight.amplitude),
        )
    print_table(console, table, least=("tensor",))


def _accumulated(console: Console, document: LayersDocument, verbose: bool) -> None:
    console.print()
    say(console, "accumulated: u1 of the product of all layers so far")
    table = make_table("layer", "log10 s1", "gap", "to u1 of L", "u1: largest coordinates")
    for product in document.accumulated:
        table.add_row(
            str(product.layer),
            f"{product.log10_sigma:.3f}",
            number(product.gap),
            f"{product.angle_deg:.1f} deg",
            coordinates(product.direction_top[: 5 if verbose else 3]),
        )
    print_table(console, table)


def _empirical(console: Console, document: LayersDocument) -> None:
    console.print()
    say(
        console,
        "beside the direction of tokens in running text: its angle in degrees to u1, and the "
        "eigenvalue of R whose eigenvector is nearest, with that angle",
    )
    names = [f"layers {row.plateau[0]} to {row.plateau[1]}" for row in document.empirical]
    table = make_table("layer", "label:", *(f"{n}: {c}" for n in names for c in ("u1", "R")))
    for index, row in enumerate(document.layers):
        cells = []
        for found in document.empirical:
            near = found.eigenvalues[index] if found.eigenvalues else None
            told = "-" if near is None else f"{_eigenvalue(near)} at {near.angle_deg:.1f}"
            cells += [f"{found.angles_deg[index]:.1f}", told]
        table.add_row(str(row.layer), row.label or "", *cells)
    print_table(console, table)


def _eigenvalue(found: Eigenvalue) -> str:
    imag = f" +- {number(found.imag)}i" if found.imag else ""
    return number(found.real, signed=True) + imag


def _begin_token(record: BeginTokenRecord) -> str:
    at = f"norm {number(record.peak_norm)} after layer {record.peak_layer}"
    if record.growth == "like the others":
        return f"token {record.token} is like the others ({at})"
    how = (
        f"one layer adds {percent(record.largest_gain)} of it"
        if record.growth == "abrupt"
        else f"gradually: no layer adds more than {percent(record.largest_gain)} of it"
    )
    beside = (
        "beside ordinary tokens whose median is 0"
        if record.largest_ratio is None
        else f"up to {number(record.largest_ratio)} times the ordinary tokens' median"
    )
    return f"token {record.token} stands out: {at}, {beside}; {how}"
