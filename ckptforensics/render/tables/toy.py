"""Small networks trained here, for people."""

from __future__ import annotations

from rich.console import Console

from ckptforensics.errors import one_line
from ckptforensics.quantities import counted, number
from ckptforensics.render.tables.console import (
    fact,
    make_console,
    make_table,
    print_table,
    say,
    text_of,
)
from ckptforensics.render.tables.facts import skipped
from ckptforensics.render.view import View
from ckptforensics.results.toy import ToyDocument, ToyPoint, ToyRun

_MEASURES = {
    "value_norm": "|W_O v| of <s>",
    "attention_to_first": "attention to <s>",
    "logit_gap": "logit gap",
    "residual_norm": "norm of <s>",
}
_ROWS = 12


def toy_table(document: ToyDocument, view: View) -> str:
    """A row a run, then each run: its log (whole where `view` is verbose), what it needs."""
    console = make_console(view)
    if len(document.runs) > 1:
        _runs(console, document)
    for run in document.runs:
        if len(document.runs) > 1:
            console.print()
        _run(console, run, document.needed_nats, verbose=view.verbose)
    skipped(console, document.skipped)
    return text_of(console)


def _runs(console: Console, document: ToyDocument) -> None:
    say(console, "the last step of each run; the layer where it is largest")
    table = make_table(
        *("run:", "step", "loss", "behind triggers", "elsewhere", "attention"),
        *("value", "norm of <s>", "others", "highest"),
    )
    for run in document.runs:
        if not run.curve:
            continue
        last = run.curve[-1]
        layer = last.peak
        table.add_row(
            run.name,
            f"{last.step:,}",
            f"{last.loss:.3f}",
            _optional(last.excess_trigger),
            _optional(last.excess_other),
            f"{max(last.attention):.2f}",
            number(last.value_norm[layer]),
            number(last.residual_norm[layer]),
            number(last.others_norm[layer]),
            number(max(last.highest)) if last.highest else "-",
        )
    print_table(console, table, least=("highest", "value", "elsewhere"))


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _run(console: Console, run: ToyRun, needed: float, *, verbose: bool) -> None:
    fact(console, "run", run.path)
    task = f"{run.task} on {one_line(run.text)}"
    fact(console, "task", task)
    built = [counted(run.layers, "layer"), f"width {run.width}", f"{run.parameters:,} parameters"]
    others = [option for option in run.options if not option.startswith("width ")]
    fact(console, "network", ", ".join([*built, f"{run.attention} attention", *others]))
    trained = (
        f"{run.optimizer}, rate {run.rate:g}, batch {run.batch}, seed {run.seed}, "
        f"{counted(run.threads, 'thread')}, torch {run.torch}"
    )
    fact(console, "trained", trained)
    if run.start is not None:
        fact(console, "begun from", run.start)
    if not run.curve:
        say(console, "nothing was measured yet")
        return
    _curve(console, run, verbose=verbose)
    if run.published:
        _published(console, run)
    if run.ablations:
        _ablations(console, run)
    if run.heads:
        _heads(console, run, needed)


def _curve(console: Console, run: ToyRun, *, verbose: bool) -> None:
    console.print()
    last = run.curve[-1]
    layer = last.peak
    say(console, f"along training; attention, value and norms of layer {layer + 1}")
    triggers = ("behind triggers", "elsewhere") if last.excess_trigger is not None else ()
    gap = ("logit gap",) if last.logit_gap else ()
    table = make_table(
        *("step", "loss", *triggers, "attention", *gap, "value", "norm of <s>", "others")
    )
    rows = run.curve if verbose else _thinned(run.curve)
    for point in rows:
        excess = [_optional(point.excess_trigger), _optional(point.excess_other)]
        table.add_row(
            f"{point.step:,}",
            f"{point.loss:.3f}",
            *(excess if triggers else ()),
            f"{point.attention[layer]:.3f}",
            *((number(point.logit_gap[layer]),) if gap else ()),
            number(point.value_norm[layer]),
            number(point.residual_norm[layer]),
            number(point.others_norm[layer]),
        )
    print_table(console, table, least=("logit gap", "elsewhere"))
    if len(rows) < len(run.curve):
        say(console, f"{len(rows)} of {len(run.curve)} measured steps; -v shows all")


def _thinned(curve: tuple[ToyPoint, ...]) -> tuple[ToyPoint, ...]:
    """The first and the last, and some between."""
    if len(curve) <= _ROWS:
        return curve
    places = sorted({round(i * (len(curve) - 1) / (_ROWS - 1)) for i in range(_ROWS)})
    return tuple(curve[i] for i in places)


def _published(console: Console, run: ToyRun) -> None:
    console.print()
    say(console, f"published (batch 512) beside measured (batch {run.batch}), layer 1")
    table = make_table("step", "what:", "published", "measured", "at step")
    for row in run.published:
        table.add_row(
            f"{row.step:,}",
            _MEASURES[row.measure],
            number(row.published),
            number(row.measured),
            f"{row.measured_step:,}",
        )
    print_table(console, table)
    differs = next((row.comparable for row in run.published if row.comparable), None)
    if differs is not None:
        say(console, f"not the published run: {differs}")


def _ablations(console: Console, run: ToyRun) -> None:
    console.print()
    say(console, "the last checkpoint without a part; norm of <s> after the last layer")
    table = make_table("without:", "loss", "behind triggers", "elsewhere", "norm of <s>")
    names = {"attention": "attention", "ffn": "FFN", "layer": "anything"}
    for row in run.ablations:
        if row.without == "nothing":
            what = "nothing"
        elif row.layer is None:
            what = f"any {names[row.without]}"
        elif row.without == "layer":
            what = f"layer {row.layer}"
        else:
            what = f"{names[row.without]} of layer {row.layer}"
        table.add_row(
            what,
            f"{row.loss:.3f}",
            f"{row.excess_trigger:.3f}",
            f"{row.excess_other:.3f}",
            number(row.residual_norm[-1]),
        )
    print_table(console, table)


def _heads(console: Console, run: ToyRun, needed: float) -> None:
    console.print()
    say(
        console,
        f"heads: active where the loss rises by more than {needed:g} nats without them, else "
        "dormant",
    )
    table = make_table(
        *("layer", "head", "queries:", "state:", "needed", "attends to <s>", "to the one before")
    )
    for head in run.heads:
        for name, domain in (("triggers", head.trigger), ("others", head.other)):
            table.add_row(
                str(head.layer),
                str(head.head),
                name,
                domain.state,
                f"{domain.needed:.3f}",
                f"{domain.attention:.3f}",
                f"{domain.copied:.3f}",
            )
    print_table(console, table)
