"""Plans of quantization, and quantized copies beside their sources, as tables for people."""

from __future__ import annotations

from ckptforensics.quantities import number, percent, size
from ckptforensics.render.tables.console import (
    fact,
    make_console,
    make_table,
    print_table,
    say,
    text_of,
)
from ckptforensics.render.tables.facts import heading, skipped
from ckptforensics.render.view import View
from ckptforensics.results.quantization_diff import QuantizationDiffDocument
from ckptforensics.results.quantization_plan import PlannedModule, QuantizationPlanDocument

# Modules shown that are not kept, unless every row is asked for.
_OTHERS_SHOWN = 5


def plan_table(document: QuantizationPlanDocument, view: View) -> str:
    """A row a module, those that are kept first, and why."""
    console = make_console(view)
    heading(console, document.model)
    fact(console, "explosion", _numbers(document.explosion))
    fact(console, "decay", _numbers(document.decay))
    fact(console, "evidence", document.conclusion)
    kept = document.kept
    cost = sum(m.bytes_16 - m.bytes_8 for m in kept)
    asked = " (asked for)" if document.chosen == "asked" else ""
    share = cost / document.bytes_8 if document.bytes_8 else 0.0
    fact(
        console,
        "kept",
        f"{len(kept)} of {len(document.modules)} modules in 16 bits{asked}: {size(cost)} more "
        f"({percent(share, 1)} of {size(document.bytes_8)})",
    )
    others = [m for m in document.modules if not m.keep]
    shown = [*kept, *(others if view.verbose else others[:_OTHERS_SHOWN])]
    table = make_table(
        *("rank", "layer", "module:", "kept", "costs", "saves"),
        *("initial", "ordinary", "without initial"),
    )
    for m in shown:
        table.add_row(
            *(str(m.rank), str(m.layer), m.module, "yes" if m.keep else "no"),
            *(size(m.bytes_16 - m.bytes_8), error_share(m.saves), error_share(m.error.initial)),
            *(error_share(m.error.ordinary), error_share(m.error.ordinary_alone)),
        )
    print_table(console, table)
    for m in kept:
        for line in _why(m):
            say(console, line, begin="  ")
    skipped(console, document.skipped)
    return text_of(console)


def diff_table(document: QuantizationDiffDocument, view: View) -> str:
    """Rows by role and encoding, and by layer; with `-v` every matrix."""
    console = make_console(view)
    fact(console, "source", document.source.path)
    fact(console, "quantized", document.quantized.path)
    fact(console, "error", f"{percent(document.error, 2)} of the weights, over all matrices")
    table = make_table("role:", "encoding:", "lattice:", "count", "smallest", "median", "largest")
    for g in document.groups:
        table.add_row(
            *(g.role, g.dtype, g.lattice or "none found", str(g.count)),
            *(percent(g.smallest, 2), percent(g.median, 2), percent(g.largest, 2)),
        )
    print_table(console, table)
    layers = make_table("layer", "error", "worst:", "its error")
    for row in document.layers:
        layers.add_row(
            str(row.layer), percent(row.error, 2), row.worst, percent(row.worst_error, 2)
        )
    print_table(console, layers)
    if view.verbose:
        every = make_table("layer", "tensor", "encoding:", "error", "lattice:", "step", "within")
        for t in document.tensors:
            every.add_row(
                *(str(t.layer), t.tensor, f"{t.dtypes[0]} to {t.dtypes[1]}", percent(t.error, 2)),
                *(t.lattice or "none found", "-" if t.step is None else number(t.step)),
                "-" if t.within is None else percent(t.within, 1),
            )
        print_table(console, every)
    skipped(console, document.skipped)
    return text_of(console)


def _numbers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "none found"


def error_share(value: float | None) -> str:
    """A relative error; a dash where it is not known."""
    return "-" if value is None else percent(value, 1)


def _why(module: PlannedModule) -> list[str]:
    weights = [f"super weight [{w.row}, {w.column}]" for w in module.super_weights]
    return [f"{module.module}: " + "; ".join((*module.why, *weights))]
