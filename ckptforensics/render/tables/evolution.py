"""Norms and directions along checkpoints for people."""

from __future__ import annotations

from pathlib import PurePath

from rich.console import Console

from ckptforensics.errors import one_line
from ckptforensics.quantities import angle, number
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
from ckptforensics.results.evolution import (
    AngleRecord,
    EvolutionDocument,
    EvolvedCheckpoint,
    LayerEvolution,
    NormPeak,
)


def evolution_table(document: EvolutionDocument, view: View) -> str:
    """A row a checkpoint, then the layers that ever have a label (all where `view` is verbose)."""
    console = make_console(view)
    _facts(console, document)
    marked = _checkpoints(console, document)
    shown = list(document.layers) if view.verbose else document.labelled_layers
    if not shown:
        console.print()
        say(console, "no checkpoint has an explosion or decay layer; -v shows every layer")
    for layer in shown:
        marked |= _layer(console, layer, verbose=view.verbose)
    if marked:
        console.print()
        say(
            console,
            f"* s1 is less than {document.clear_gap:g} times s2 in one of the two checkpoints: u1 "
            "is hardly determined there, and the angle says little",
        )
    skipped(console, document.skipped)
    return text_of(console)


def _facts(console: Console, document: EvolutionDocument) -> None:
    first, last = document.checkpoints[0], document.checkpoints[-1]
    source = {"names": "from the names", "given": "as given", "order": "counted"}
    heading(console, document.model)
    fact(
        console,
        "checkpoints",
        f"{len(document.checkpoints)}, steps {first.step:,} to {last.step:,} "
        f"({source[document.steps_from]})",
    )
    fact(console, "fit", document.fit)
    if last.direction.top:
        fact(console, "direction", f"{coordinates(last.direction.top[:3])} (of the last)")
    peaks = {"norm peak": document.norm_peak.typical, "begin token": document.norm_peak.initial}
    for name, peak in peaks.items():
        if peak is not None:
            fact(console, name, _peak(peak))
    defect = document.defect
    if defect is None:
        fact(console, "defect layer", "none at the last checkpoint")
        return
    fact(console, "defect layer", f"{defect.layer} ({one_line(defect.prefix)}), {defect.label}")
    fact(console, "appears", _begins(defect.appears, document.appears_deg))
    fact(console, "settles", _begins(defect.settles, document.settles_deg))
    if defect.labelled is not None:
        comes = {
            "before": ", before the norm peak",
            "with": ", with the norm peak",
            "after": ", after the norm peak",
            None: "",
        }
        told = f"from step {defect.labelled:,} on{comes[document.label_comes]}"
        fact(console, "labelled", told)


def _begins(step: int | None, limit: float) -> str:
    if step is None:
        return f"at no checkpoint before the last (within {limit:g} degrees of it)"
    return f"step {step:,} (from there within {limit:g} degrees of the last)"


def _peak(peak: NormPeak) -> str:
    return f"{number(peak.norm)} after layer {peak.layer} at step {peak.step:,}"


def _checkpoints(console: Console, document: EvolutionDocument) -> bool:
    """Print a row a checkpoint; whether an angle is marked."""
    console.print()
    where = "" if document.defect is None else f" of layer {document.defect_layer}"
    say(console, f"largest norm (median of tokens), and degrees of u1{where} to other checkpoints")
    table = make_table("step", "norm", "previous", "last", "explosion", "decay", "checkpoint")
    names = _short_names(document)
    for one, name in zip(document.checkpoints, names, strict=True):
        peak = one.norm_peak.typical
        table.add_row(
            f"{one.step:,}",
            "-" if peak is None else number(peak.norm),
            *_angles(one),
            _numbers(one.explosion),
            _numbers(one.decay),
            name,
        )
    print_table(console, table, least=("checkpoint",))
    return any(_marked(one.u_previous, one.u_last) for one in document.checkpoints)


def _short_names(document: EvolutionDocument) -> list[str]:
    """The last parts of the checkpoints' names, or the whole names where some would be the same."""
    whole = [one_line(one.name) for one in document.checkpoints]
    short = [PurePath(name).name or name for name in whole]
    return short if len(set(short)) == len(short) else whole


def _angles(one: EvolvedCheckpoint) -> tuple[str, str]:
    if one.explosion or one.decay:
        return _degrees(one.u_previous), _degrees(one.u_last)
    return "no defect", "no defect"


def _numbers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _layer(console: Console, layer: LayerEvolution, *, verbose: bool) -> bool:
    """Print a layer along the checkpoints; whether an angle is marked."""
    console.print()
    say(console, f"layer {layer.layer} ({one_line(layer.prefix)})")
    triggers = ("v previous", "v last") if verbose else ()
    table = make_table("step", "label:", "s1", "gap", "norm", "u previous", "u last", *triggers)
    for one in layer.checkpoints:
        cells = (angle(one.v_previous_deg), angle(one.v_last_deg)) if verbose else ()
        table.add_row(
            f"{one.step:,}",
            one.label or "",
            number(one.sigma[0]),
            f"{one.gap:.2f}",
            "-" if one.typical_norm is None else number(one.typical_norm),
            _degrees(one.u_previous),
            _degrees(one.u_last),
            *cells,
        )
    print_table(console, table, least=("v previous", "v last", "s1"))
    return any(_marked(one.u_previous, one.u_last) for one in layer.checkpoints)


def _degrees(found: AngleRecord | None) -> str:
    if found is None:
        return "-"
    return angle(found.degrees) + ("" if found.clear else "*")


def _marked(*angles: AngleRecord | None) -> bool:
    return any(one is not None and not one.clear for one in angles)
