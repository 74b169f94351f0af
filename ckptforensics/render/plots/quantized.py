"""A model rounded in several ways: perplexity, and errors of modules against their prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptforensics.quantities import counted, number
from ckptforensics.render.plots.drawing import (
    FAINT,
    MAIN,
    OTHER,
    Drawing,
    log_axis,
    new_figure,
    plain,
)
from ckptforensics.render.quantized import Summary, summaries
from ckptforensics.results.quantization import QuantizationDocument

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Smaller errors are drawn here: a logarithmic axis has no zero.
_LEAST = 1e-4


def draw_quantization(document: QuantizationDocument) -> Drawing:
    """Perplexity of each row; and, where there is a plan, predicted and measured errors."""
    rows = summaries(document)
    height = max(4.2, 1.8 + 0.32 * len(rows))
    figure = new_figure(document.model, "perplexity with linear modules rounded", 12.0, height)
    pairs = [
        (a, b, kind)
        for p in document.predictions
        for kind, (a, b) in enumerate(zip(p.predicted, p.measured, strict=True))
        if a is not None and b is not None
    ]
    if pairs:
        left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
        _errors(right, pairs)
    else:
        left = figure.subplots()
    _bars(left, rows)
    return Drawing(figure, _caption(document, rows, has_errors=bool(pairs)))


def _color(row: str) -> str:
    if row == "none":
        return "black"
    return MAIN if "planned" in row else OTHER if "random" in row else FAINT


def _bars(axes: Axes, rows: list[Summary]) -> None:
    lows = [row.lowest for row in rows]
    highs = [row.highest for row in rows]
    left = min(lows) / 1.15
    for place, row in enumerate(rows):
        axes.barh(
            place,
            row.perplexity - left,
            left=left,
            color=_color(row.row),
            hatch="///" if "random" in row.row else None,
            edgecolor="white",
            height=0.72,
        )
        if row.lowest < row.highest:
            axes.plot([row.lowest, row.highest], [place, place], color="black", linewidth=1.5)
        axes.annotate(
            number(row.perplexity),
            (row.highest, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    log_axis(axes, [*lows, *highs], along="x")
    axes.set_xlim(left, max(highs) * (max(highs) / left) ** 0.16)
    axes.set_yticks(range(len(rows)), [row.row for row in rows], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("perplexity (lower is better)")
    plain(axes)


def _errors(axes: Axes, pairs: list[tuple[float, float, int]]) -> None:
    names = ("initial tokens", "ordinary tokens")
    for kind, (name, color, mark) in enumerate(zip(names, (OTHER, MAIN), ("^", "o"), strict=True)):
        own = [(max(a, _LEAST), max(b, _LEAST)) for a, b, k in pairs if k == kind]
        axes.plot(
            [a for a, _ in own],
            [b for _, b in own],
            mark,
            color=color,
            markersize=4,
            alpha=0.7,
            label=name,
        )
    values = [max(v, _LEAST) for a, b, _ in pairs for v in (a, b)]
    ends = [min(values) / 1.3, max(values) * 1.3]
    axes.plot(ends, ends, color=FAINT, linewidth=1, label="as predicted")
    log_axis(axes, values)
    log_axis(axes, values, along="x")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.set_xlabel("relative error of a layer's module, predicted")
    axes.set_ylabel("measured")
    axes.legend(fontsize=8, frameon=False)
    plain(axes)


def _caption(document: QuantizationDocument, rows: list[Summary], *, has_errors: bool) -> str:
    known = {row.row: row for row in rows}
    text = (
        f"Each row rounds the linear modules of every layer in one way and runs "
        f"{counted(document.text.tokens, 'token')} of text"
    )
    base, rtn, planned = (known.get(n) for n in ("none", "rtn", "rtn+planned"))
    if base is not None and rtn is not None:
        text += (
            f": perplexity is {number(base.perplexity)} as it is and {number(rtn.perplexity)} "
            "rounded to int8 with one step a tensor"
        )
        if planned is not None:
            text += f", {number(planned.perplexity)} with the planned modules kept in 16 bits"
    if any("planned" in row.row for row in rows):
        text += ". Blue: planned modules kept"
    if any("random" in row.row for row in rows):
        text += ". Hatched: as many modules at random, the mean and the range of the seeds"
    if has_errors:
        text += ". Right: each module once for initial and once for ordinary tokens, under rtn"
    return text + "."
